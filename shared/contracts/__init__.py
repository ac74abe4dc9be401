"""The agreements between services: queues, the saga's table, the waybill and the events."""
