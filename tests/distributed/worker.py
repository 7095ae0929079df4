"""One of two processes with two devices each: writes what `layouts` computes to a file."""

import pickle
import sys

import jax
from support.layouts import LAYOUTS, OPTIONS, STORAGES, mesh_of, trained, updates_and_state


def main(address, process, output):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    assert jax.device_count() == 4
    assert jax.local_device_count() == 2
    mesh = mesh_of(4)
    results = {
        (layout, dtype): jax.tree.leaves(updates_and_state(mesh, layout, dtype, OPTIONS[1]))
        for layout in LAYOUTS
        for dtype in STORAGES
    }
    jax.config.update("jax_enable_x64", True)
    results["trained"] = jax.tree.leaves(trained(mesh, "ZeRO-1"))
    if jax.process_index() == 0:
        with open(output, "wb") as file:
            pickle.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
