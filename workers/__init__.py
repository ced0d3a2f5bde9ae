"""Redis in, sinks out: fetch, normalize, enrich, deliver."""
