"""Which method needs the fewest labels? Sweeps label budgets, searches each, and says what was saved.

python studies/label_sweep.py --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's cluster may not have the library installed

from sibcl_ray.cli.main import main_program

if __name__ == "__main__":
    main_program("sweep")
