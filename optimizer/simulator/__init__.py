"""Runs a policy on an engine, from event to event, and records what was executed."""
