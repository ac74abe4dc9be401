"""Celery and RabbitMQ as Waybill uses them: the app, the step, the events and the topology."""
