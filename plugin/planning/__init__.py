"""
Which strategy, model and decoder is the cheapest that serves a budget.
"""
