#!/usr/bin/env python3
"""What the chart renders: valid, strict, locked down, and only what the programs can do. Needs no cluster."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import chart
import yaml

KUBERNETES_VERSIONS = sorted(path.name[1:] for path in (chart.tool("schemas")).glob("v*"))
# One for each way that the chart can take.
EXAMPLES = chart.examples()
WITH_TLS = chart.CHART / "ci" / "tls-values.yaml"
WITH_EVERYTHING = chart.CHART / "ci" / "production-values.yaml"
JOBSET = chart.CHART / "ci" / "jobset-values.yaml"
WITH_GPUS = chart.CHART / "ci" / "gpu-values.yaml"
SHARED_VOLUME = chart.CHART / "ci" / "shared-volume-values.yaml"
# Where users may say anything: their own labels, and parts of pods; or name models.
FREE = {"global", "stringMap", "quantities", "affinity", "tolerations[]", "podSelector", "namespaceSelector", "ipBlock",
        "pins"}


def closed(schema, name="values"):
    """Names of the objects in a schema that take any key."""
    found = []
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        found.append(name)
    for key, value in {**schema.get("properties", {}), **schema.get("definitions", {})}.items():
        found += closed(value, key)
    if isinstance(schema.get("items"), dict):
        found += closed(schema["items"], f"{name}[]")
    return found


def schema_at(schema, definitions):
    return definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def camel(name):
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


def flags_of(container):
    """{flag: value} of a command line; "" for flags without a value."""
    flags = [argument for argument in container.get("args", []) if argument.startswith("--")]
    return {flag: value for flag, _, value in (argument.partition("=") for argument in flags)}


def token_of(secret, key):
    """The source of a volume with the file "token" alone, for the pod's group to read."""
    return {"secretName": secret, "defaultMode": 0o440, "items": [{"key": key, "path": "token"}]}


def conforms(text, version):
    """The finished process of kubeconform."""
    file = "{{ .NormalizedKubernetesVersion }}/{{ .ResourceKind }}{{ .KindSuffix }}.json"
    return subprocess.run(
        [
            chart.tool("kubeconform"),
            "-strict",
            "-summary",
            "-kubernetes-version",
            version,
            "-schema-location",
            chart.tool("schemas") / file,
        ],
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


class Validity(unittest.TestCase):
    def test_lints(self):
        for path in [chart.CHART / "values.yaml", *EXAMPLES]:
            done = chart.helm("lint", "--strict", chart.CHART, "--values", path)
            self.assertEqual(done.returncode, 0, f"{path.name}: {done.stdout}{done.stderr}")

    def test_objects_are_kubernetes_to_the_letter(self):
        self.assertGreaterEqual(len(KUBERNETES_VERSIONS), 2)
        for path in [chart.CHART / "values.yaml", *EXAMPLES]:
            objects = chart.template(files=[path])
            self.assertEqual(objects.returncode, 0, f"{path.name}: {objects.stderr}")
            for version in KUBERNETES_VERSIONS:
                done = conforms(objects.stdout, version)
                self.assertEqual(done.returncode, 0, f"{path.name}, Kubernetes {version}: {done.stdout}")
                self.assertIn("Skipped: 0", done.stdout)

    def test_a_misspelled_field_of_kubernetes_would_be_seen(self):
        def misspelled(file, kind, field, wrong):
            objects = chart.template(files=[file]).stdout.split("\n---\n")
            (text,) = [each for each in objects if f"\nkind: {kind}\n" in each]
            done = conforms(text.replace(field, wrong), KUBERNETES_VERSIONS[0])
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(wrong, done.stdout)

        misspelled(WITH_TLS, "StatefulSet", "readOnlyRootFilesystem", "readonlyRootFilesystem")
        misspelled(JOBSET, "JobSet", "onJobFailureReasons", "onJobFailureReason")
        misspelled(JOBSET, "JobSet", "readOnlyRootFilesystem", "readonlyRootFilesystem")

    def test_a_misspelled_value_is_refused(self):
        for values in (
            {"wrokers": 2},
            {"worker": {"cuont": 2}},
            {"job": {"optimizer": {"learning_rate": 0.1}}},
            {"data": {"resources": {"limit": {}}}},
            {"model": {"image": {"tag": "1"}}},
        ):
            done = chart.template(values)
            self.assertNotEqual(done.returncode, 0, values)
            self.assertIn("additional properties", done.stderr.lower(), values)

    def test_values_out_of_range_are_refused(self):
        for values in (
            {"worker": {"count": 0}},
            {"worker": {"mode": "spark"}},
            {"worker": {"mode": "jobset", "maxRestarts": -1}},
            {"job": {"slots": 2000}},
            {"parameterServer": {"shards": 65}},
            {"model": {"source": "s3"}},
            {"dataset": {"kind": "imagenet"}},
            {"parameterServer": {"backupWorkers": 2}},
            {"model": {"canarySet": {"from": "synthetic"}}},
            {"model": {"canarySet": {"margin": 1.5}}},
            {"model": {"rollout": {"mode": "blue-green"}}},
            {"tls": {"secretName": "mine"}, "runToken": {"existingSecret": "tokens", "key": "a/b"}},
        ):
            self.assertNotEqual(chart.template(values).returncode, 0, values)

    def test_schema_is_closed_everywhere(self):
        schema = json.loads((chart.CHART / "values.schema.json").read_text())
        self.assertEqual(set(closed(schema)) - FREE, set())

    def test_every_value_is_in_the_schema_and_documented(self):
        schema = json.loads((chart.CHART / "values.schema.json").read_text())
        text = (chart.CHART / "values.yaml").read_text()
        comments = "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))

        def check(values, part, path):
            part = schema_at(part, schema["definitions"])
            for key, value in values.items():
                if part.get("additionalProperties", True) is not False:
                    return  # the user's own
                self.assertIn(key, part["properties"], path)
                documented = path[:1] == ("job",) or re.search(rf"\b{key}\b", comments) or isinstance(value, dict)
                self.assertTrue(documented, f"{'.'.join(path + (key,))} is not documented")
                if isinstance(value, dict):
                    check(value, part["properties"][key], path + (key,))

        check(yaml.safe_load(text), schema, ())


class TheJob(unittest.TestCase):
    def proto(self, message):
        """(fields, enums by type) of a message in job.proto or data.proto."""
        text = "".join((chart.ROOT / "proto/millrace/v1" / name).read_text() for name in ("job.proto", "data.proto"))
        text = re.sub("//.*", "", text)
        body = re.search(rf"message {message} {{(.*?)\n}}", text, re.S)[1]
        enums = {
            name: re.findall(r"(\w+) = [1-9]", values) for name, values in re.findall(r"enum (\w+) {(.*?)}", text, re.S)
        }
        body = re.sub(r"enum \w+ {.*?}", "", body, flags=re.S)
        return {name: type_ for type_, name in re.findall(r"(\w+) (\w+) = \d+;", body)}, enums

    def check_message(self, schema, message):
        fields, enums = self.proto(message)
        fields.pop("torchscript_path", None)  # a file that the chart brings to no pod
        self.assertEqual(set(schema["properties"]), {camel(field) for field in fields}, message)
        for field, type_ in fields.items():
            part = schema["properties"][camel(field)]
            if type_ in enums:
                self.assertEqual(part["enum"], enums[type_], field)
            elif part.get("type") == "object":
                self.check_message(part, type_)

    def test_its_values_are_the_fields_of_the_proto(self):
        schema = json.loads((chart.CHART / "values.schema.json").read_text())
        self.check_message(schema["properties"]["job"], "JobSpec")

    def test_is_written_as_protobuf_text(self):
        objects = chart.render(
            {
                "job": {
                    "seed": 4503599627370497,
                    "modelName": "BIG_NAME",
                    "publishBest": False,
                    "schedule": {"kind": "KIND_ONE_CYCLE", "warmupSteps": 1000000},
                }
            }
        )
        text = next(each for each in chart.of_kind(objects, "ConfigMap", "parameter-server"))["data"]["job.textproto"]
        for line in (
            "seed: 4503599627370497",
            'model_name: "BIG_NAME"',
            "publish_best: false",
            "kind: KIND_ONE_CYCLE",
            "warmup_steps: 1000000",
            "epsilon: 1e-08",
            "learning_rate: 0.001",
        ):
            self.assertIn(line, text)

    def test_another_one_restarts_the_parameter_servers_and_makes_new_workers(self):
        def identity(mode, values):
            objects = chart.render(chart.merged({"worker": {"mode": mode}}, values))
            (server,) = chart.of_kind(objects, "StatefulSet")
            (workers,) = chart.of_kind(objects, "Job") + chart.of_kind(objects, "JobSet")
            return (
                server["spec"]["template"]["metadata"]["annotations"]["checksum/config"],
                workers["metadata"]["name"],
            )

        for mode in ("job", "jobset"):
            checksum, workers = identity(mode, {})
            for same in ({"model": {"replicas": 3}}, {"worker": {"ttlSecondsAfterFinished": 60}}):
                self.assertEqual(identity(mode, same), (checksum, workers))
            longer = identity(mode, {"job": {"epochs": 20}})
            self.assertNotEqual(longer[0], checksum)
            self.assertNotEqual(longer[1], workers)
            for values in (
                {"worker": {"revision": "2"}},
                {"image": {"tag": "9"}},
                {"commonLabels": {"a": "b"}},
                {"worker": {"count": 3}},
            ):
                self.assertNotEqual(identity(mode, values)[1], workers, values)
        # Of a JobSet its policies cannot be changed either.
        self.assertNotEqual(identity("jobset", {"worker": {"maxRestarts": 4}})[1], workers)


class Pods(unittest.TestCase):
    def each_pod(self):
        for path in [chart.CHART / "values.yaml", *EXAMPLES]:
            yield from (spec for _, _, spec in chart.pods(chart.render(files=[path])))

    def test_are_restricted(self):
        for spec in self.each_pod():
            self.assertIs(spec["automountServiceAccountToken"], False)
            # A Service "millrace-x" would set MILLRACE_X_PORT, and MILLRACE_... are flags.
            self.assertIs(spec["enableServiceLinks"], False)
            self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
            self.assertGreater(spec["securityContext"]["runAsUser"], 0)
            self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertFalse({"hostNetwork", "hostPID", "hostIPC"} & set(spec))
            for container in spec.get("initContainers", []) + spec["containers"]:
                security = container["securityContext"]
                self.assertEqual(
                    security,
                    {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                )
                self.assertIn("memory", container["resources"]["limits"])
                self.assertLessEqual({"cpu", "memory"}, set(container["resources"]["requests"]))
                self.assertRegex(container["image"], r"(:[^:/]+|@sha256:[0-9a-f]{64})$")
                self.assertNotRegex(container["image"], ":latest$")

    def test_services_are_probed_where_they_answer(self):
        for spec in self.each_pod():
            for container in spec["containers"]:
                if container["name"] == "predict":
                    continue
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                for probe, path in (
                    ("startupProbe", "/healthz"),
                    ("livenessProbe", "/healthz"),
                    ("readinessProbe", "/readyz"),
                ):
                    scheme = "HTTPS" if "--tls-cert=/tls/tls.crt" in container["args"] else "HTTP"
                    self.assertEqual(container[probe]["httpGet"], {"path": path, "port": "http", "scheme": scheme})
                for flag, port in (("--http-listen", "http"), ("--listen", "grpc")):
                    if port in ports:
                        self.assertIn(f"{flag}=0.0.0.0:{ports[port]}", container["args"])

    def test_speak_tls_or_say_that_they_do_not(self):
        files = {"--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key", "--tls-ca=/tls/ca.crt"}
        for values, secret in (({}, None), ({"tls": {"secretName": "mine"}}, "mine")):
            for _, _, spec in chart.pods(chart.render(values)):
                (container,) = spec["containers"]
                self.assertEqual("--insecure" in container["args"], secret is None and container["name"] != "predict")
                self.assertEqual(files <= set(container["args"]), secret is not None)
                mounted = [volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume]
                self.assertEqual(mounted, [secret] if secret else [])

    def test_of_training_show_each_other_a_token(self):
        mount = {"name": "run-token", "mountPath": "/run-token", "readOnly": True}
        volume = {"name": "run-token", "secret": token_of("tokens", "run")}
        shared = {"source": "volume"}  # asks no part of training for anything
        training = {"data", "parameter-server", "worker"}
        for token, model, mode, wanted in (
            ({"existingSecret": "tokens", "key": "run"}, {}, "job", training | {"model"}),
            ({"existingSecret": "tokens", "key": "run"}, {}, "jobset", training | {"model"}),
            ({"existingSecret": "tokens", "key": "run"}, shared, "elastic", training),
            ({"key": "run"}, {}, "job", set()),
        ):
            values = {
                "tls": {"secretName": "mine"},
                "runToken": token,
                "model": model,
                "parameterServer": {"output": {"accessMode": "ReadWriteMany"}},
                "worker": {"mode": mode},
            }
            have = set()
            for _, metadata, spec in chart.pods(chart.render(values)):
                (container,) = spec["containers"]
                parts = (
                    flags_of(container).get("--run-token-file") == "/run-token/token",
                    mount in container["volumeMounts"],
                    volume in spec["volumes"],
                )
                self.assertEqual(len(set(parts)), 1, parts)
                if all(parts):
                    have.add(metadata["labels"]["app.kubernetes.io/component"])
            self.assertEqual(have, wanted)

    def test_mount_the_volumes_that_they_have(self):
        for spec in self.each_pod():
            containers = spec.get("initContainers", []) + spec["containers"]
            mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
            self.assertEqual(mounted, {volume["name"] for volume in spec["volumes"]})

    def test_have_time_to_drain(self):
        for spec in self.each_pod():
            for container in spec["containers"]:
                values = flags_of(container)
                drain = float(values.get("--drain-seconds", 0)) + float(values.get("--drain-grace-ms", 0)) / 1000
                self.assertGreaterEqual(spec.get("terminationGracePeriodSeconds", 30), drain + 5)

    def test_clients_have_left_before_the_model_service_is_done_draining(self):
        for seconds in (0, 1, 10, 3600):
            (deployment,) = chart.of_kind(chart.render({"model": {"drainSeconds": seconds}}), "Deployment", "model")
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            values = flags_of(container)
            # gRPC takes up to a tenth longer.
            self.assertLessEqual(1.1 * int(values["--max-connection-age-ms"]), 1000 * float(values["--drain-seconds"]))
            self.assertEqual(int(values["--max-connection-age-ms"]) > 0, seconds > 0)

    def test_carry_the_labels_that_select_them(self):
        for path in EXAMPLES:
            objects = chart.render(files=[path])
            labels = {
                metadata["labels"]["app.kubernetes.io/component"]: (metadata["labels"], spec)
                for _, metadata, spec in chart.pods(objects)
            }
            for each in objects:
                if each["kind"] not in ("Service", "Deployment", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"):
                    continue
                selector = each["spec"].get("selector") or each["spec"]["podSelector"]
                selector = selector.get("matchLabels", selector)
                self.assertEqual(
                    set(selector), {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}
                )
                pod_labels, spec = labels[selector["app.kubernetes.io/component"]]
                self.assertLessEqual(selector.items(), pod_labels.items())
                if each["kind"] == "Service":
                    names = {port["name"] for port in spec["containers"][0]["ports"]}
                    self.assertLessEqual({port["targetPort"] for port in each["spec"]["ports"]}, names)

    def test_every_object_has_the_recommended_labels(self):
        for each in chart.render(files=[WITH_EVERYTHING]):
            wanted = {"name", "instance", "component", "version", "part-of", "managed-by"}
            self.assertLessEqual(
                {f"app.kubernetes.io/{label}" for label in wanted} | {"helm.sh/chart", "team"},
                set(each["metadata"]["labels"]),
                each["metadata"]["name"],
            )

    def test_names_fit_with_long_releases(self):
        for each in chart.render(files=[WITH_EVERYTHING], release="r" * 53):
            self.assertLessEqual(len(each["metadata"]["name"]) + len("-63-abcde"), 63 + 5)

    def test_command_lines_are_flags_that_the_programs_have(self):
        programs = os.environ.get("MILLRACE_BIN_DIR")
        if not programs:
            self.skipTest("MILLRACE_BIN_DIR is not set")
        known = {}
        for spec in self.each_pod():
            for container in spec["containers"]:
                program = container["command"][0]
                if program not in known:
                    arguments = ["predict", "--help"] if program == "millrace" else ["--help"]
                    text = subprocess.run(
                        [pathlib.Path(programs) / program, *arguments], check=True, text=True, stdout=subprocess.PIPE
                    ).stdout
                    known[program] = (set(re.findall("--[a-z-]+", text)), set(re.findall(r"Env:(\w+)", text)))
                flags, variables = known[program]
                self.assertLessEqual(set(flags_of(container)), flags, program)
                named = {each["name"] for each in container.get("env", []) if each["name"].startswith("MILLRACE_")}
                self.assertLessEqual(named, variables, program)


class Cluster(unittest.TestCase):
    def test_a_certificate_without_an_issuer_is_refused(self):
        self.assertIn("issuerRef", chart.template({"tls": {"certManager": {"enabled": True}}}).stderr)

    def test_a_token_in_plain_text_is_refused(self):
        token = {"runToken": {"existingSecret": "tokens"}}
        self.assertIn("plain text", chart.template(token).stderr)
        issuer = {"enabled": True, "issuerRef": {"name": "ca"}}
        for tls in ({"secretName": "mine"}, {"certManager": issuer}):
            self.assertEqual(chart.template({**token, "tls": tls}).returncode, 0)

    def test_output_that_shards_cannot_share_is_refused(self):
        two = {"parameterServer": {"shards": 2}}
        self.assertIn("ReadWriteMany", chart.template(two).stderr)
        self.assertIn("ReadWriteMany", chart.template({"model": {"source": "volume"}}).stderr)
        for output in ({"accessMode": "ReadWriteMany"}, {"existingClaim": "mine"}):
            self.assertEqual(chart.template(chart.merged(two, {"parameterServer": {"output": output}})).returncode, 0)

    def test_output_outlives_the_release(self):
        (claim,) = chart.of_kind(chart.render(), "PersistentVolumeClaim")
        self.assertEqual(claim["metadata"]["annotations"], {"helm.sh/resource-policy": "keep"})
        (server,) = chart.of_kind(chart.render(), "StatefulSet")
        self.assertIn(
            {"name": "output", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}},
            server["spec"]["template"]["spec"]["volumes"],
        )

    def model_pod(self, values):
        (deployment,) = chart.of_kind(chart.render(values), "Deployment", "model")
        return deployment["spec"]["template"]["spec"]

    def test_operators_have_a_token(self):
        spec = self.model_pod({"model": {"adminToken": {"existingSecret": "tokens", "key": "admin"}}})
        (container,) = spec["containers"]
        self.assertEqual(flags_of(container)["--admin-token-file"], "/admin-token/token")
        mount = {"name": "admin-token", "mountPath": "/admin-token", "readOnly": True}
        self.assertIn(mount, container["volumeMounts"])
        self.assertIn({"name": "admin-token", "secret": token_of("tokens", "admin")}, spec["volumes"])
        self.assertNotIn("--admin-token-file", flags_of(self.model_pod({})["containers"][0]))

    def test_pinned_versions_are_told_to_every_pod(self):
        (container,) = self.model_pod({"model": {"pins": {"mnist": 123456789, "digits-2": 7}}})["containers"]
        pins = [argument for argument in container["args"] if argument.startswith("--pin=")]
        self.assertEqual(pins, ["--pin=digits-2=7", "--pin=mnist=123456789"])
        self.assertNotEqual(chart.template({"model": {"pins": {"mnist": 0}}}).returncode, 0)
        self.assertNotEqual(chart.template({"model": {"pins": {"../mnist": 1}}}).returncode, 0)

    def test_versions_are_measured_on_a_canary_set(self):
        dataset = {"kind": "claim", "claim": {"name": "mnist", "subPath": "idx"}}
        own = {"from": "claim", "claim": {"name": "labelled", "subPath": "new/t10k"}, "margin": 0.1}
        for canary_set, claim, path, margin in (
            ({"from": "dataset"}, "mnist", "/canary/idx", "0.02"),
            (own, "labelled", "/canary/new/t10k", "0.1"),
            ({"from": "claim", "claim": {"name": "labelled"}}, "labelled", "/canary", "0.02"),
        ):
            spec = self.model_pod({"dataset": dataset, "model": {"canarySet": canary_set}})
            (container,) = spec["containers"]
            flags = flags_of(container)
            self.assertEqual((flags["--canary-set"], flags["--canary-margin"]), (path, margin))
            self.assertIn({"name": "canary", "mountPath": "/canary", "readOnly": True}, container["volumeMounts"])
            volume = {"name": "canary", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            self.assertIn(volume, spec["volumes"])
        spec = self.model_pod({"dataset": dataset})
        self.assertNotIn("--canary-set", flags_of(spec["containers"][0]))
        self.assertNotIn("canary", [volume["name"] for volume in spec["volumes"]])

    def test_a_canary_set_that_is_not_there_is_refused(self):
        self.assertIn("dataset.kind", chart.template({"model": {"canarySet": {"from": "dataset"}}}).stderr)
        self.assertIn("claim.name", chart.template({"model": {"canarySet": {"from": "claim"}}}).stderr)

    def test_a_candidate_is_tried_as_the_values_say(self):
        """Every flag that a rollout other than an immediate one takes."""
        text = pathlib.Path(chart.ROOT / "services/model/main.cc").read_text()
        known = set(re.findall(r'"(--(?:rollout|canary-fraction)[a-z-]*)"', text))
        for mode, flags in (("immediate", {"--rollout"}), ("canary", known), ("shadow", known)):
            (container,) = self.model_pod({"model": {"rollout": {"mode": mode, "rows": 70000}}})["containers"]
            given = flags_of(container)
            self.assertEqual({flag for flag in given if flag in known}, flags)
            self.assertEqual(given["--rollout"], mode)
            self.assertEqual(given.get("--rollout-rows"), None if mode == "immediate" else "70000")

    def test_model_service_rolls_out_without_a_gap(self):
        (deployment,) = chart.of_kind(chart.render(), "Deployment", "model")
        self.assertEqual(deployment["spec"]["strategy"]["rollingUpdate"], {"maxSurge": 1, "maxUnavailable": 0})
        (deployment,) = chart.of_kind(
            chart.render({"model": {"autoscaling": {"enabled": True}}}), "Deployment", "model"
        )
        self.assertNotIn("replicas", deployment["spec"])

    def test_jobset_has_the_job_of_the_other_mode(self):
        (job,) = chart.of_kind(chart.render(), "Job")
        (jobset,) = chart.of_kind(chart.render({"worker": {"mode": "jobset"}}), "JobSet")
        (one,) = chart.jobs(jobset)
        self.assertEqual(one["spec"], job["spec"])
        self.assertEqual(one["metadata"]["labels"], job["metadata"]["labels"])

    def test_jobset_starts_again_so_often_but_for_errors_that_stay(self):
        (jobset,) = chart.of_kind(chart.render(files=[JOBSET]), "JobSet")
        (job,) = chart.jobs(jobset)
        failure = jobset["spec"]["failurePolicy"]
        self.assertEqual(failure["maxRestarts"], 1)
        # The reason that a Job has failed for which the action FailJob of its podFailurePolicy has failed.
        (rule,) = failure["rules"]
        self.assertEqual((rule["action"], rule["onJobFailureReasons"]), ("FailJobSet", ["PodFailurePolicy"]))
        self.assertIn("FailJob", [each["action"] for each in job["spec"]["podFailurePolicy"]["rules"]])
        self.assertRegex(rule["name"], "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")  # or JobSet's webhook refuses it
        self.assertEqual(jobset["spec"]["successPolicy"], {"operator": "All"})

    def test_jobset_is_removed_as_a_whole(self):
        """A Job of a JobSet that removed itself would be made again."""
        (jobset,) = chart.of_kind(chart.render(files=[JOBSET]), "JobSet")
        self.assertEqual(jobset["spec"]["ttlSecondsAfterFinished"], 3600)
        for job in chart.jobs(jobset):
            self.assertNotIn("ttlSecondsAfterFinished", job["spec"])

    def test_names_of_a_jobsets_pods_fit(self):
        values = {"worker": {"mode": "jobset", "count": 100000}}
        for release in ("demo", "r" * 53, "r" * 32 + "-" + "r" * 20):
            (jobset,) = chart.of_kind(chart.render(values, release=release), "JobSet")
            (job,) = chart.jobs(jobset)
            self.assertRegex(f"{job['metadata']['name']}-99999-abcde", "^[a-z][-a-z0-9]{0,61}[a-z0-9]$")

    def test_gpus_are_the_workers_alone(self):
        for mode in ("job", "jobset", "elastic"):
            objects = chart.render({"worker": {"mode": mode}}, files=[WITH_GPUS])
            for _, metadata, spec in chart.pods(objects):
                wants = metadata["labels"]["app.kubernetes.io/component"] == "worker"
                (container,) = spec["containers"]
                self.assertEqual(container["resources"]["limits"].get("nvidia.com/gpu"), 1 if wants else None)
                self.assertEqual(spec.get("runtimeClassName"), "nvidia" if wants else None)
                for field in ("nodeSelector", "tolerations"):
                    self.assertEqual(field in spec, wants)
                self.assertEqual(container["image"].startswith("millrace-worker-cuda:"), wants)
                self.assertEqual(flags_of(container).get("--device"), "cuda" if wants else None)

    def test_a_device_without_a_gpu_is_refused(self):
        for device in ("cuda", "cuda:1"):
            self.assertIn("no GPU", chart.template({"worker": {"device": device}}).stderr)
            no_limits = {"worker": {"device": device, "resources": {"limits": None}}}
            self.assertIn("no GPU", chart.template(no_limits).stderr)
        for device in ("cpu", "auto"):
            self.assertEqual(chart.template({"worker": {"device": device}}).returncode, 0)

    def test_workers_end_for_good_on_errors_that_stay(self):
        (job,) = chart.of_kind(chart.render(), "Job")
        rules = job["spec"]["podFailurePolicy"]["rules"]
        self.assertIn(
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": "millrace-worker", "operator": "In", "values": [64, 78]},
            },
            rules,
        )
        self.assertEqual(job["spec"]["completionMode"], "Indexed")

    def test_what_needs_something_of_the_cluster_is_off(self):
        kinds = {each["kind"] for each in chart.render()}
        optional = {"Ingress", "HorizontalPodAutoscaler", "PodMonitor", "PrometheusRule", "Certificate", "JobSet"}
        self.assertFalse(kinds & optional)
        files = [WITH_EVERYTHING, WITH_TLS, JOBSET]
        self.assertLessEqual(optional, {each["kind"] for each in chart.render(files=files)})

    def arrows(self, objects):
        """Connections that both ends allow: (from, to, port); and what else goes in or out."""

        def components(peers):
            return {
                peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                for peer in peers
                if "namespaceSelector" not in peer
            }

        inward, outward, outside = set(), set(), set()
        for policy in chart.of_kind(objects, "NetworkPolicy"):
            own = policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            self.assertEqual(policy["spec"]["policyTypes"], ["Ingress", "Egress"])
            for rule in policy["spec"]["ingress"]:
                for port in rule["ports"]:
                    inward |= {(peer, own, port["port"]) for peer in components(rule.get("from", []))}
                    if any("namespaceSelector" in peer for peer in rule.get("from", [{"namespaceSelector": None}])):
                        outside.add(("outside", own, port["port"]))
            for rule in policy["spec"]["egress"]:
                for port in rule["ports"]:
                    outward |= {(own, peer, port["port"]) for peer in components(rule.get("to", []))}
                    if not components(rule.get("to", [])):
                        outside.add((own, "outside", port["port"]))
        return inward, outward, outside

    def test_network_policies_are_the_arrows_of_the_design(self):
        training = {
            ("worker", "data", "grpc"),
            ("worker", "parameter-server", "grpc"),
            ("parameter-server", "data", "grpc"),
            ("parameter-server", "parameter-server", "grpc"),
        }
        scraped = {("outside", each, "http") for each in ("data", "parameter-server", "worker", "model")}
        resolving = {(each, "outside", 53) for each in ("parameter-server", "worker")}
        served = {("outside", "model", "grpc")}
        stream = {("model", "parameter-server", "grpc")}

        inward, outward, outside = self.arrows(chart.render())
        self.assertEqual(inward, training | stream)
        self.assertEqual(outward, training | stream)
        self.assertEqual(outside, scraped | resolving | served | {("model", "outside", 53)})

        inward, outward, outside = self.arrows(chart.render(files=[SHARED_VOLUME]))
        self.assertEqual(inward, training)
        self.assertEqual(outward, training)
        fetching = {("data", "outside", port) for port in (53, 80, 443)}
        self.assertEqual(outside, scraped | resolving | served | fetching)

    def test_every_policy_has_its_pods(self):
        objects = chart.render()
        components = {metadata["labels"]["app.kubernetes.io/component"] for _, metadata, _ in chart.pods(objects)}
        policies = {
            each["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for each in chart.of_kind(objects, "NetworkPolicy")
        }
        self.assertEqual(policies, components - {"test"})

    def notes(self, *flags):
        """What NOTES.txt says, which `helm template` does not show."""
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "chart"
            shutil.copytree(chart.CHART, copy)
            notes = (copy / "templates/NOTES.txt").read_text()
            (copy / "templates/notes.yaml").write_text(
                '{{- define "notes" }}' + notes + '{{ end }}\nnotes: {{ include "notes" . | quote }}\n'
            )
            done = chart.helm(
                "template", "demo", copy, "--namespace", "ml", "--show-only", "templates/notes.yaml", *flags
            )
        self.assertEqual(done.returncode, 0, done.stderr)
        return yaml.safe_load(done.stdout)["notes"]

    def test_notes_name_the_objects_that_there_are(self):
        text = self.notes()
        names = {each["metadata"]["name"] for each in chart.render()} | {"demo-millrace-ps-0"}
        self.assertLessEqual(set(re.findall(r"demo-millrace[-a-z0-9]*", text)), names)
        self.assertEqual(len(re.findall(r"^\d\. ", text, re.M)), 3)
        self.assertIn("helm -n ml test demo", text)

    def test_notes_wait_for_the_workers_that_there_are(self):
        for mode, wait in (
            ("job", "--for=condition=Complete --timeout 24h job"),
            ("jobset", "--for=condition=Completed --timeout 24h jobset"),
            ("elastic", "until kubectl -n ml logs demo-millrace-ps-0 | grep 'job done'"),
        ):
            text = self.notes("--set", "model.enabled=false", "--set", f"worker.mode={mode}")
            self.assertIn(wait, text, mode)
            self.assertEqual(len(re.findall(r"^\d\. ", text, re.M)), 3)


if __name__ == "__main__":
    chart.require_tools("helm", "kubeconform", "schemas")
    unittest.main()
