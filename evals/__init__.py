"""What measures: data sets, protocols and reports."""
