#!/usr/bin/env python3
"""A model server as anyone writes it in Python: gRPC, TorchScript, one forward pass for each request.

Answers millrace.v1.ModelService/Predict with the version in a directory that predict_bench --export wrote. Needs
python3-grpcio, python3-protobuf, python3-torch and protoc. Prints `LISTENING grpc=ADDRESS` as our services do.
"""
import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile

import grpc
import torch

PROTO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")


def messages():
    """The module that protoc makes of model.proto."""
    directory = tempfile.mkdtemp()
    subprocess.run(["protoc", f"--proto_path={PROTO}", f"--python_out={directory}", "millrace/v1/model.proto"], check=True)
    sys.path.insert(0, directory)
    from millrace.v1 import model_pb2
    return model_pb2


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version-dir", required=True)
    args = parser.parse_args()
    model_pb2 = messages()
    torch.set_num_threads(1)
    model = torch.jit.freeze(torch.jit.load(os.path.join(args.version_dir, "model.pt")).eval())

    def predict(request, context):
        with torch.inference_mode():
            pixels = torch.frombuffer(bytearray(request.raw), dtype=torch.uint8).view(-1, 1, 28, 28)
            rows = model(pixels).tolist()
        response = model_pb2.PredictResponse(model="mnist", version=1)
        for row in rows:
            response.predictions.add(label=max(range(len(row)), key=row.__getitem__), probabilities=row)
        return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(os.cpu_count()))
    handler = grpc.unary_unary_rpc_method_handler(predict, request_deserializer=model_pb2.PredictRequest.FromString,
                                                  response_serializer=model_pb2.PredictResponse.SerializeToString)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("millrace.v1.ModelService", {"Predict": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"LISTENING grpc=127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
