#!/usr/bin/env python3
"""Talks to a running millrace-model as grpcurl does, knowing nothing but its address: finds the services by reflection,
builds a request from what that tells, and watches the model's health.

usage: grpc_client.py GRPC_ADDRESS MODEL VERSION
"""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "inference.GRPCInferenceService"


def main():
    address, model, version = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        services = set(reflection.get_services())
        assert {SERVICE, "millrace.v1.ModelService", "grpc.health.v1.Health"} <= services, services

        pool = descriptor_pool.DescriptorPool(reflection)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelInfer")
        request_type, response_type = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        request = request_type(model_name=model)
        tensor = request.inputs.add(name="INPUT__0", datatype="UINT8", shape=[1, 1, 28, 28])
        tensor.contents.uint_contents.extend([0] * 784)
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_type.SerializeToString, response_type.FromString)
        response = infer(request, timeout=20)
        assert response.model_version == version, response
        assert len(response.outputs[0].contents.fp32_contents) == 10, response  # typed, as the request was
        print(f"ok    reflection: ModelInfer by version {response.model_version}")

        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", model):
            # Follows the service by some tenths of a second.
            for answer in health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            print(f"ok    health: '{name}' is SERVING")


if __name__ == "__main__":
    main()
