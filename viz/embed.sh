#!/bin/sh
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# Prints C++ source that holds files as constants:
#
#   embed.sh kName=file+file... ...

set -eu

echo '#include "viz/page.h"'
for argument; do
  echo "const char viz::${argument%%=*}[] ="
  # A string literal may be no longer than compilers like: one a file.
  echo "${argument#*=}" | tr + '\n' | while read -r file; do
    echo 'R"__embed__('
    cat "$file"
    echo ')__embed__"'
  done
  echo ';'
done
