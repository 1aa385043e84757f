"""Budgets for whole runs of LangChain agents; needs the extra `agents`."""
