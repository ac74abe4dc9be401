"""owners and idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("orders", sa.Column("owner", sa.String(length=128), nullable=False, server_default=""))
    op.create_index("orders_by_owner", "orders", ["owner", "created_at", "id"])
    op.create_index("orders_by_owner_status", "orders", ["owner", "status", "created_at", "id"])
    op.drop_index("orders_by_customer", "orders")
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("order_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.JSON(), nullable=True),
        sa.Column("pending_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key"),
    )
    op.create_index("idempotency_keys_by_age", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    """Revert."""
    op.drop_index("idempotency_keys_by_age", "idempotency_keys")
    op.drop_table("idempotency_keys")
    op.create_index("orders_by_customer", "orders", ["customer_id", "created_at", "id"])
    op.drop_index("orders_by_owner_status", "orders")
    op.drop_index("orders_by_owner", "orders")
    op.drop_column("orders", "owner")
