"""Models: loading, tree attention, fused log-probs, and the reference policy."""

import os

# oneDNN keeps the code it made for the last 1024 shapes of a product, and packed batches hardly ever have one shape twice: half a gigabyte
# that is of no use. A pass needs some twenty. Read when the first product is made, and yours where you have set it.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
