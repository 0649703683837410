"""Evaluations: data sets, protocols and reports."""
