"""Small models learn what target models write: scorers that expect it, and drafters that say it first.

Distribution alignment is LLMLingua's (arXiv 2310.05736, section 3.3, equation (8)). ``answers`` gathers what the
targets answered in jobs of this pipeline, and a job of its own trains on it: ``pairs`` (text to tokens, the split),
``losses``, ``training`` (the loop), ``session`` (one attempt). ``stage`` makes an adapter
(``pipeline.models.adapters``) that scorers load by name, ``distilling`` a whole model (``pipeline.models.distilled``)
whose ``drafts`` a target checks.
"""

from __future__ import annotations
