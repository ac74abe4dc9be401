"""Publish events: persistent, mandatory (an event no queue takes is an error) and confirmed by the broker."""

import json

from celery import Celery
from kombu.serialization import register

from shared.contracts.events import CONTENT_TYPE, Event
from shared.messaging.topology import EVENTS, events_queue

_SERIALIZER = "cloudevents"
register(_SERIALIZER, json.dumps, json.loads, content_type=CONTENT_TYPE, content_encoding="utf-8")


def publish_events(app: Celery, *events: Event) -> None:
    """Publish and wait for the broker's word; raise kombu's ``OperationalError`` when it cannot be had."""
    with app.producer_or_acquire() as producer, producer.connection._reraise_as_library_errors():
        for event in events:
            producer.publish(
                event.to_cloudevent(),
                exchange=EVENTS,
                routing_key=event.type,
                serializer=_SERIALIZER,
                message_id=event.id,
                delivery_mode="persistent",
                mandatory=True,
                declare=[events_queue()],
                retry=True,
                retry_policy=app.conf.task_publish_retry_policy,
            )
