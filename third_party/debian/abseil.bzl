# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""Abseil in Debian: package -> target -> pkg-config module.

The labels are the upstream ones, @com_google_absl//absl/<package>:<target>.
Debian 12 has Abseil 20220623: no absl/log yet. check-bazel7.sh reads this
file as Python.
"""

ABSEIL = {
    "algorithm": {
        "container": "absl_algorithm_container",
    },
    "base": {
        "base": "absl_base",
        "core_headers": "absl_core_headers",
        "log_severity": "absl_log_severity",
    },
    "cleanup": {
        "cleanup": "absl_cleanup",
    },
    "container": {
        "btree": "absl_btree",
        "fixed_array": "absl_fixed_array",
        "flat_hash_map": "absl_flat_hash_map",
        "flat_hash_set": "absl_flat_hash_set",
        "inlined_vector": "absl_inlined_vector",
        "node_hash_map": "absl_node_hash_map",
        "node_hash_set": "absl_node_hash_set",
    },
    "flags": {
        "config": "absl_flags_config",
        "flag": "absl_flags",
        "marshalling": "absl_flags_marshalling",
        "parse": "absl_flags_parse",
        "reflection": "absl_flags_reflection",
        "usage": "absl_flags_usage",
    },
    "functional": {
        "any_invocable": "absl_any_invocable",
        "bind_front": "absl_bind_front",
        "function_ref": "absl_function_ref",
    },
    "hash": {
        "hash": "absl_hash",
    },
    "memory": {
        "memory": "absl_memory",
    },
    "numeric": {
        "bits": "absl_bits",
        "int128": "absl_int128",
    },
    "random": {
        "bit_gen_ref": "absl_random_bit_gen_ref",
        "distributions": "absl_random_distributions",
        "random": "absl_random_random",
    },
    "status": {
        "status": "absl_status",
        "statusor": "absl_statusor",
    },
    "strings": {
        "cord": "absl_cord",
        "str_format": "absl_str_format",
        "strings": "absl_strings",
    },
    "synchronization": {
        "synchronization": "absl_synchronization",
    },
    "time": {
        "time": "absl_time",
    },
    "types": {
        "any": "absl_any",
        "optional": "absl_optional",
        "span": "absl_span",
        "variant": "absl_variant",
    },
    "utility": {
        "utility": "absl_utility",
    },
}
