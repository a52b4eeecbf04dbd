"""Say what a shard's attempt is doing

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("shards", sa.Column("doing", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("shards") as batch_op:
        batch_op.drop_column("doing")
