"""Reports for people: previews, summaries, tables, comparisons, dashboards."""
