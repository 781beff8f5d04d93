"""What a user of the tracking may have to act on."""


class TrackingError(ValueError):
    """The tracking store cannot be used as it is set up; the message says what to change."""


class JournalError(TrackingError):
    """A journal that is damaged, or in use by another process."""


class RegistryError(TrackingError):
    """A registered model that is not there, or is not what its record says."""
