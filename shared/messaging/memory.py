"""The embedded stack's broker: kombu's memory transport, plus what it lacks to keep a rejected message.

RabbitMQ moves a rejected message to its queue's dead-letter queue; the memory transport drops it.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from kombu.transport import TRANSPORT_ALIASES, memory, virtual


class _QoS(virtual.QoS):
    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject as RabbitMQ does: what is not put back goes to the dead-letter queue."""
        message = self._delivered.get(delivery_tag)
        if message is not None and not requeue:
            self.channel.dead_letter(message)
        super().reject(delivery_tag, requeue=requeue)


class Channel(memory.Channel):
    """A channel that honours ``x-dead-letter-routing-key``."""

    QoS = _QoS
    _arguments: ClassVar[dict[str, dict[str, Any]]] = {}

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:
        """Declare a queue and remember its arguments."""
        declared = super().queue_declare(queue=queue, passive=passive, **kwargs)
        if not passive:
            self._arguments[declared.queue] = kwargs.get("arguments") or {}
        return declared

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Note in the message which queue it is in; one message may be put into several."""
        super()._put(queue, {**message, "properties": {**message["properties"], "queue": queue}}, **kwargs)

    def _restore(self, message: virtual.Message) -> None:
        """Put a message back into the queue it came from; its routing key may say where it was first."""
        self._put(message.properties["queue"], {**message.serializable(), "redelivered": True})

    def dead_letter(self, message: virtual.Message) -> None:
        """Move a message to the dead-letter queue of the queue it came from, body and headers unchanged."""
        queue = message.properties["queue"]
        target = self._arguments.get(queue, {}).get("x-dead-letter-routing-key")
        if target is None:
            return
        payload = message.serializable()
        death = {"queue": queue, "reason": "rejected", "count": 1, "time": datetime.now(UTC).isoformat()}
        payload["headers"] = {**payload["headers"], "x-death": [death]}
        self._put(target, payload)


class Transport(memory.Transport):
    """The transport behind ``memory://``."""

    Channel = Channel
    global_state = virtual.BrokerState()


def register() -> None:
    """Serve ``memory://`` with this transport."""
    TRANSPORT_ALIASES["memory"] = f"{__name__}:Transport"


def reset() -> None:
    """Forget every queue and message, as a restart of the process would."""
    memory.Channel.queues.clear()
    Channel._arguments.clear()
    Transport.global_state.clear()
