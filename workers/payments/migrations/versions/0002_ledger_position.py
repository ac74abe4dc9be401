"""Remember how far the provider's ledger was compared."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "ledger_position",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "payments_owed", "payments", ["order_id"], postgresql_where=sa.text("status = 'CAPTURED' AND cancelled")
    )


def downgrade() -> None:
    """Revert."""
    op.drop_index("payments_owed", "payments")
    op.drop_table("ledger_position")
