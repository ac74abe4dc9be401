"""Celery settings and nothing else. Why each differs from Celery's default is said beside it."""

from kombu import Exchange
from kombu import Queue as KombuQueue

from shared.alive import ALIVE_EVERY
from shared.contracts.queues import TASKS_EXCHANGE, Queue, TaskName
from shared.messaging.topology import TRANSPORT_OPTIONS, ours, quorum_arguments
from shared.settings import get_settings

_settings = get_settings()
_exchange = Exchange(TASKS_EXCHANGE, type="topic", **ours())

broker_url = _settings.broker_url
broker_transport_options = TRANSPORT_OPTIONS[_settings.embedded]
broker_connection_timeout = 2  # seconds; a black hole must not hold a request
broker_connection_retry_on_startup = True
broker_channel_error_retry = True  # a queue that is "down or inaccessible" while the broker starts is no reason to end
broker_connection_max_retries = None  # a worker outlives any outage of the broker
broker_heartbeat = 10
broker_pool_limit = _settings.worker_concurrency + 2
broker_native_delayed_delivery_queue_type = "quorum"  # a retry survives the broker's crash
worker_cancel_long_running_tasks_on_connection_loss = True  # else the redelivered copy overlaps the first

task_queues = [
    KombuQueue(name, _exchange, routing_key=name, queue_arguments=quorum_arguments(name), **ours()) for name in Queue
]
task_create_missing_queues = False
task_default_queue = Queue.ORDERS
task_default_exchange = TASKS_EXCHANGE
task_default_exchange_type = "topic"
task_routes = {f"{name}.*": {"queue": name, "routing_key": name, "mandatory": True} for name in Queue}

task_serializer = "json"
accept_content = ["json"]
task_ignore_result = True
result_backend = None

task_acks_late = True  # an unacknowledged message is the worker's outbox
task_acks_on_failure = False  # failed: to the dead-letter exchange, not acknowledged
task_acks_on_timeout = False
task_reject_on_worker_lost = True
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5}

worker_pool = "threads"  # steps wait on other people's networks
worker_concurrency = _settings.worker_concurrency
worker_prefetch_multiplier = 1  # with late acks: no message waits behind a slow one
worker_consumer = "shared.messaging.consumer:CarefulConsumer"
worker_hijack_root_logger = False
worker_send_task_events = True  # Flower
task_send_sent_event = False
worker_enable_prefetch_count_reduction = True

beat_scheduler = "shared.messaging.beat:PatientScheduler"
beat_max_loop_interval = ALIVE_EVERY
beat_schedule = {
    "sweep": {"task": str(TaskName.SWEEP), "schedule": _settings.sweep_every},
    "reconcile": {"task": str(TaskName.RECONCILE), "schedule": _settings.reconcile_every},
}
timezone = "UTC"
