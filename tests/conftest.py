"""Settings that must be made before numpy is imported."""

import os

# The matrices in tests are tiny: more threads only wait for each other on busy machines.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
