"""Optimal scheduling of LLM inference, on a simulator that matches a real engine step by step."""
