#!/usr/bin/env python3
"""Images per second of the default network under PyTorch DistributedDataParallel with gloo.

Two processes of one thread each, batch 128 per process, Adam, data already in memory: what a PyTorch user would run on
the same two cores. `--form natural` is the network as anyone writes it (NCHW, relu before pooling); `--form tuned` has
the tricks of the default network here (channels-last, pooling before relu, flattening in height-width-channel order).
Prints one JSON object.
"""
import argparse
import json
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.nn.functional as F


class Natural(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3)
        self.dense = nn.Linear(5408, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x):
        x = x.float() / 255.0
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.relu(self.dense(x.flatten(1)))
        return self.out(x)


class Tuned(Natural):
    def forward(self, x):
        n = x.size(0)
        x = x.reshape(n, 28, 28, 1).permute(0, 3, 1, 2).float() * (1.0 / 255.0)
        x = F.relu(F.max_pool2d(self.conv(x), 2))
        x = x.permute(0, 2, 3, 1).reshape(n, -1)
        x = F.relu(self.dense(x))
        return self.out(x)


def work(rank, args, rendezvous, result):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.processes)
    torch.manual_seed(1)
    model = nn.parallel.DistributedDataParallel({"natural": Natural, "tuned": Tuned}[args.form]())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.randint(0, 256, (8192, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (8192,))
    batch = args.batch_per_process
    for step in range(args.warmup + args.steps):
        if step == args.warmup:
            dist.barrier()
            start = time.perf_counter()
        at = step * batch % (8192 - batch)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images[at:at + batch]), labels[at:at + batch]).backward()
        optimizer.step()
    dist.barrier()
    if rank == 0:
        result.put(args.steps * batch * args.processes / (time.perf_counter() - start))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=["natural", "tuned"], default="natural")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-per-process", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = mp.get_context("spawn")
    result = context.SimpleQueue()
    import tempfile
    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(work, args=(args, os.path.join(directory, "rendezvous"), result), nprocs=args.processes)
    print(json.dumps({"form": args.form, "processes": args.processes, "images_per_second": result.get()}))


if __name__ == "__main__":
    main()
