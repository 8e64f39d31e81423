from . import fashion_mnist as fashion_mnist
from . import zoo as zoo
from .batches import take as take
from .data import Data as Data
from .named import Images as Images
from .named import load as load
from .shuffling import shuffled as shuffled
