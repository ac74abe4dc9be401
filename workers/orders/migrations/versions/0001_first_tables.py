"""first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "orders",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("customer_id", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("waybill", sa.JSON(), nullable=False),
        sa.Column("correlation_id", sa.String(length=64), nullable=False),
        sa.Column("transaction_id", sa.String(length=64), nullable=True),
        sa.Column("courier", sa.String(length=64), nullable=True),
        sa.Column("failure", sa.String(length=64), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sweeps", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("orders_by_age", "orders", ["created_at", "id"])
    op.create_index("orders_by_customer", "orders", ["customer_id", "created_at", "id"])
    op.create_index("orders_by_status", "orders", ["status", "created_at", "id"])
    op.create_index("orders_due", "orders", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))

    op.create_table(
        "order_events",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("order_id", sa.String(length=36), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("order_events_timeline", "order_events", ["order_id", "time"])


def downgrade() -> None:
    """Revert."""
    op.drop_index("order_events_timeline", "order_events")

    op.drop_table("order_events")
    op.drop_index("orders_due", "orders", postgresql_where=sa.text("due_at IS NOT NULL"))
    op.drop_index("orders_by_status", "orders")
    op.drop_index("orders_by_customer", "orders")
    op.drop_index("orders_by_age", "orders")

    op.drop_table("orders")
