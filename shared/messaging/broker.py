"""What goes wrong between us and the broker, as one."""

from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError

#: kombu wraps only what it believes it can recover from: a vhost that is missing for a while, or a queue whose node is
#: still starting, comes as AMQP's own error. ``OSError`` is a socket's.
BROKER_ERRORS = (OperationalError, AMQPError, OSError)
