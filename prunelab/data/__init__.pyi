from . import fashion_mnist as fashion_mnist
from . import zoo as zoo
from .batches import Data as Data
from .batches import shuffled as shuffled
from .batches import take as take
from .named import Images as Images
from .named import load as load
