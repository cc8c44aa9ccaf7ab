# The public names of the package, once: __init__.py loads each of them on first use, and type checkers read them here.
# typing.TYPE_CHECKING is always true in a stub; it tells mypy to order the modules of the package without these imports,
# each of which closes a circle (a subpackage loads its parent first).

import typing

if typing.TYPE_CHECKING:
    from . import augment as augment
    from . import data as data
    from . import deploy as deploy
    from . import metrics as metrics
    from . import models as models
    from . import nn as nn
    from . import numpy as numpy
    from . import ops as ops
    from . import plots as plots
    from . import predict as predict
    from . import recipes as recipes
    from . import reference as reference
    from . import train as train
    from .accelerate import accelerate as accelerate
    from .errors import BackendError as BackendError
    from .errors import InputError as InputError
    from .errors import InputTypeError as InputTypeError
    from .models import UNet as UNet
    from .run import Run as Run

__version__: str
