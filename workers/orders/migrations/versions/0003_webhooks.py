"""webhook receipts."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "webhook_receipts",
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("webhook_id", sa.String(length=255), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("source", "webhook_id"),
    )
    op.create_index("webhook_receipts_by_age", "webhook_receipts", ["signed_at"])


def downgrade() -> None:
    """Revert."""
    op.drop_index("webhook_receipts_by_age", "webhook_receipts")
    op.drop_table("webhook_receipts")
