"""D_aug, G and P (Sec. 3.2, Algorithm 2): from an image to views that know where they come from."""

from glsd.augment.distributions import sample_views as sample_views
from glsd.augment.geometric import crop_into as crop_into
from glsd.augment.photometric import normalize as normalize
from glsd.augment.photometric import photometric_device as photometric_device
from glsd.augment.photometric import photometric_worker as photometric_worker
from glsd.augment.vector import JITTER_OPERATIONS as JITTER_OPERATIONS
from glsd.augment.vector import PHOTOMETRIC_FIELDS as PHOTOMETRIC_FIELDS
from glsd.augment.vector import ViewVectors as ViewVectors
from glsd.augment.views import ViewBatch as ViewBatch
from glsd.augment.views import Views as Views
from glsd.augment.views import multicrop as multicrop
from glsd.augment.views import multicrop_batch as multicrop_batch

__all__ = [
    "JITTER_OPERATIONS",
    "PHOTOMETRIC_FIELDS",
    "ViewBatch",
    "ViewVectors",
    "Views",
    "crop_into",
    "multicrop",
    "multicrop_batch",
    "normalize",
    "photometric_device",
    "photometric_worker",
    "sample_views",
]
