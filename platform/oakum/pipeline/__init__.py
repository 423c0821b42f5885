"""From one YAML to records: experiment -> plan of keyed stages -> executor -> records."""
