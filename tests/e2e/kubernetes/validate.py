#!/usr/bin/env python3
"""Reads manifests from standard input, holds each against the schemas that Kubernetes publishes (of the versions that are
named), and prints the objects as JSON. Objects of custom resources have no schema here: they are printed as they are.

    validate.py 1.25 1.37 < manifests.yaml
"""
import json
import sys

import kubernetes_validate
import yaml

objects = [one for one in yaml.safe_load_all(sys.stdin) if one]
wrong = []
for one in objects:
    if "monitoring.coreos.com/" in one["apiVersion"]:
        continue
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            wrong.append(f"{one['kind']} {one['metadata']['name']}, Kubernetes {version}: {error}")
if wrong:
    sys.exit("\n".join(wrong))
json.dump(objects, sys.stdout)
