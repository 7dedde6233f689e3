"""Shows that TensorStore leaks: a dictionary that it converts from JSON keeps a reference to each key and value.

    python benchmarks/tensorstore_leak.py [--conversions 10000]

JsonToPyObject in TensorStore's json_type_caster.cc gives PyDict_SetItem references of its own, which PyDict_SetItem
does not take over. The script needs TensorStore alone, and prints Python's memory blocks and bytes per conversion.
"""

import argparse
import sys
import tracemalloc

import tensorstore as ts


def main() -> None:
    """Converts one spec often, and prints what is left of the conversions, which have all been dropped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversions", type=int, default=10_000)
    conversions = parser.parse_args().conversions
    spec = ts.KvStore.Spec({"driver": "file", "path": "/folder/"})
    spec.to_json()
    tracemalloc.start()
    before = sys.getallocatedblocks()
    for _ in range(conversions):
        spec.to_json()
    bytes_left, _ = tracemalloc.get_traced_memory()
    blocks_left = sys.getallocatedblocks() - before
    print(f"to_json() -> {spec.to_json()}")
    print(f"left per call: {blocks_left / conversions:.1f} blocks, {bytes_left / conversions:.0f} bytes (expected: 0)")


if __name__ == "__main__":
    main()
