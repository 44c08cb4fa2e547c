"""The same jobs on a Ray cluster. Nothing of Ray is imported before FINJEPA_COMPUTE names one."""
