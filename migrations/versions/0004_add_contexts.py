"""Add contexts, and the size of slot files

Revision: 0004
Follows: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("parts", sa.Column("slots_bytes", big, nullable=True))
    op.create_table(
        "contexts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("part", sa.String(), nullable=False),
        sa.Column("context_hash", sa.String(), nullable=False),
        sa.Column("stage_hash", sa.String(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "part", "context_hash"),
    )
    op.create_index("ix_contexts_known", "contexts", ["stage_hash", "context_hash"])


def downgrade() -> None:
    op.drop_index("ix_contexts_known", table_name="contexts")
    op.drop_table("contexts")
    with op.batch_alter_table("parts") as batch_op:
        batch_op.drop_column("slots_bytes")
