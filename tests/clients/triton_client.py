#!/usr/bin/env python3
"""Does with a running millrace-model what users of Triton's own client do, over gRPC and HTTP, and checks the answers.

usage: triton_client.py GRPC_ADDRESS HTTP_ADDRESS MODEL VERSION

The model takes UINT8 [-1, 1, 28, 28] and answers with ten probabilities. Prints a line per check; exits 1 at the first
that fails.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

ROWS = 5
PIXELS = np.random.default_rng(7).integers(0, 256, (ROWS, 1, 28, 28), dtype=np.uint8)


def check(condition, what):
    print(f"{'ok  ' if condition else 'FAIL'}  {what}")
    if not condition:
        sys.exit(1)


def refusal(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except InferenceServerException as error:
        return error
    return None


def inputs(module, pixels, datatype="UINT8", **keywords):
    tensor = module.InferInput("INPUT__0", list(pixels.shape), datatype)
    tensor.set_data_from_numpy(pixels, **keywords)
    return [tensor]


def check_tells(name, client, model, version, as_dict):
    check(client.is_server_live() and client.is_server_ready(), f"{name}: live and ready")
    check(client.is_model_ready(model) and client.is_model_ready(model, version), f"{name}: the model is ready")
    check(not client.is_model_ready(model, "999999999"), f"{name}: a version that is not loaded is not")
    check("statistics" in client.get_server_metadata(**as_dict)["extensions"], f"{name}: server metadata")
    metadata = client.get_model_metadata(model, **as_dict)
    check([int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 1, 28, 28], f"{name}: model metadata")
    check(metadata["versions"] == [version] and metadata["platform"] == "pytorch_torchscript", f"{name}: versions")
    config = client.get_model_config(model, **as_dict)
    config = config.get("config", config)
    check(config["max_batch_size"] == 1024 and config["input"][0]["data_type"] == "TYPE_UINT8", f"{name}: config")
    index = client.get_model_repository_index(**as_dict)
    index = index if isinstance(index, list) else index["models"]
    check(any(entry["version"] == version and entry["state"] == "READY" for entry in index), f"{name}: index")
    statistics = client.get_inference_statistics(model, version, **as_dict)["model_stats"][0]
    check(int(statistics["inference_count"]) > 0 and int(statistics["inference_stats"]["success"]["count"]) > 0,
          f"{name}: statistics count {statistics['inference_count']} rows")


def check_loads(name, client, model, tensors):
    client.unload_model(model)
    check(not client.is_model_ready(model), f"{name}: an unloaded model is not ready")
    error = refusal(client.infer, model, tensors)
    check(error is not None and "unloaded by an operator" in str(error), f"{name}: nor does it answer: {error}")
    client.load_model(model)
    check(client.is_model_ready(model), f"{name}: once loaded it is")
    client.load_model(model)
    check(refusal(client.infer, model, tensors) is None, f"{name}: it can be loaded again, and answers")
    error = refusal(client.load_model, model, config="{}")
    check(error is not None and "parameter config" in str(error), f"{name}: from the repository only: {error}")
    error = refusal(client.load_model, "nothing")
    check(error is not None and "nothing" in str(error), f"{name}: a model that is not there: {error}")


def check_answer(name, result, expected, version, provenance):
    probabilities = result.as_numpy("OUTPUT__0")
    check(probabilities.shape == (ROWS, 10) and probabilities.dtype == np.float32, f"{name}: shape and datatype")
    check(np.allclose(probabilities.sum(axis=1), 1, atol=1e-4), f"{name}: probabilities")
    check(expected is None or np.allclose(probabilities, expected, atol=1e-5), f"{name}: the same numbers")
    check(provenance["step"] == int(version) and len(provenance["digest"]) == 64 and provenance["batch_rows"] >= ROWS,
          f"{name}: step, digest and batch rows")
    return probabilities


def check_grpc(address, model, version):
    module = tritonclient.grpc
    with module.InferenceServerClient(address) as client:
        def provenance(result):
            parameters = result.get_response().parameters
            return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()}

        result = client.infer(model, inputs(module, PIXELS), request_id="one")
        probabilities = check_answer("grpc", result, None, version, provenance(result))
        check(result.get_response().id == "one" and result.get_response().model_version == version, "grpc: id, version")
        result = client.infer(model, inputs(module, PIXELS.astype(np.float32), "FP32"), model_version=version,
                              outputs=[module.InferRequestedOutput("OUTPUT__0")], timeout=10_000_000,
                              client_timeout=10, priority=1, parameters={"deterministic": True, "unknown": "x"})
        check_answer("grpc, FP32, deterministic", result, probabilities, version, provenance(result))

        error = refusal(client.infer, model, inputs(module, PIXELS[:, :, :, 1:]))
        check(error is not None and "INVALID_ARGUMENT" in error.status() and "INPUT__0" in error.message(),
              f"grpc: a wrong shape: {error}")
        error = refusal(client.infer, model, inputs(module, PIXELS), model_version="999999999")
        check(error is not None and "NOT_FOUND" in error.status(), f"grpc: a version that is not there: {error}")

        answers = queue.Queue()
        for _ in range(8):
            client.async_infer(model, inputs(module, PIXELS), lambda result, error: answers.put((result, error)))
        for _ in range(8):
            result, error = answers.get(timeout=30)
            check(error is None and np.allclose(result.as_numpy("OUTPUT__0"), probabilities, atol=1e-5), "grpc, async")

        client.start_stream(lambda result, error: answers.put((result, error)))
        for i in range(8):
            client.async_stream_infer(model, inputs(module, PIXELS if i != 3 else PIXELS[:, :, 1:]), request_id=str(i))
        for i in range(8):
            result, error = answers.get(timeout=30)
            if i == 3:
                check(error is not None and "INPUT__0" in str(error), "grpc, stream: a fault is one answer")
            else:
                check(error is None and result.get_response().id == str(i), f"grpc, stream: answer {i}")
        client.stop_stream()
        check_tells("grpc", client, model, version, {"as_json": True})
        check_loads("grpc", client, model, inputs(module, PIXELS))
    return probabilities


def check_http(address, model, version, expected):
    module = tritonclient.http
    with module.InferenceServerClient(address, concurrency=4) as client:
        def ask(name, tensors, **keywords):
            result = client.infer(model, tensors, **keywords)
            check_answer(name, result, expected, version, result.get_response()["parameters"])
            return result

        result = ask("http, binary", inputs(module, PIXELS), request_id="one")
        check(result.get_response()["id"] == "one" and result.get_response()["model_version"] == version,
              "http: id, version")
        ask("http, JSON", inputs(module, PIXELS, binary_data=False), model_version=version,
            outputs=[module.InferRequestedOutput("OUTPUT__0", binary_data=False)])
        ask("http, FP32 as JSON, deterministic", inputs(module, PIXELS.astype(np.float32), "FP32", binary_data=False),
            outputs=[module.InferRequestedOutput("OUTPUT__0")], timeout=10_000_000, parameters={"deterministic": True})
        ask("http, gzip", inputs(module, PIXELS), request_compression_algorithm="gzip")
        pending = [client.async_infer(model, inputs(module, PIXELS)) for _ in range(8)]
        for request in pending:
            check(np.allclose(request.get_result(timeout=30).as_numpy("OUTPUT__0"), expected, atol=1e-5), "http, async")
        error = refusal(client.infer, model, inputs(module, PIXELS[:, :, :, 1:]))
        check(error is not None and error.status() == "400" and "INPUT__0" in error.message(),
              f"http: a wrong shape: {error}")
        error = refusal(client.infer, model, inputs(module, PIXELS), model_version="999999999")
        check(error is not None and error.status() == "404", f"http: a version that is not there: {error}")
        check_tells("http", client, model, version, {})
        check_loads("http", client, model, inputs(module, PIXELS))


def main():
    grpc_address, http_address, model, version = sys.argv[1:]
    check_http(http_address, model, version, check_grpc(grpc_address, model, version))


if __name__ == "__main__":
    main()
