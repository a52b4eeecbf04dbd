"""Distribution alignment: a small scoring model learns to expect what the target models write.

LLMLingua (arXiv 2310.05736), section 3.3, equation (8). ``answers`` gathers what the targets answered in jobs of this
pipeline, ``stage`` trains on it as a job of its own: ``pairs`` (text to tokens, the split), ``losses``, ``training``
(the loop), ``checkpoints``. The result is an adapter (``pipeline.models.adapters``) that scorers load by name.
"""

from __future__ import annotations
