"""The checks. Each function takes a :class:`motionmae.gpu_checks.check.Setting` and returns its figures."""
