"""Files to tensors on the device: DeepLense reader, packed store, quality, split, augmentation, batches."""

from darkarc.data.store import Store, StoreError, StoreWriter

__all__ = ["Store", "StoreError", "StoreWriter"]
