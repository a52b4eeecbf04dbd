"""Prices, costs, savings, estimates and the two reports (terminal and HTML) made of them.

Money is integer micro-dollars or ``Decimal``; what has no known price is ``None``, never 0.
"""
