#!/bin/sh
# slim.sh ENVIRONMENT: remove from a virtual environment all files that neither transforms nor the gateway load.
#
# Compiled bytecode stays: a container's root may be read-only, and importing pandas without bytecode takes seconds.
set -eu
cd "$1"/lib/python3*/site-packages

# tests inside packages, and files that only compilers read
find . -type d \( -name tests -o -name test \) \( -path './pandas/*' -o -path './numpy/*' -o -path './pyarrow/*' \
    -o -path './tornado/*' -o -path './zmq/*' -o -path './psutil/*' \) -prune -exec rm -rf {} +
rm -rf pyarrow/include pyarrow/src numpy/_core/include numpy/_core/lib numpy/random/lib
find . -type f \( -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.a' -o -name '*.pyi' \) -delete

# A wheel cannot contain links, so a library with three names is stored three times.
for file in pyarrow/libarrow_python*.so.*.*; do
    for name in "${file%.*.*}" "${file%.*.*.*}"; do
        if [ "$name" != "$file" ] && cmp -s "$file" "$name"; then ln -sf "$(basename "$file")" "$name"; fi
    done
done

# Tables of local symbols, which only debuggers read. Libraries in *.libs are left out: they were relocated when the
# wheel was built, and strip breaks them.
strip --strip-unneeded _polars_runtime*/*.so pyarrow/*.so pyarrow/*.so.*

# This saves two thirds of its 86 MB. Only the embedded S3 server starts later, by 0.3 s (gateway/storage/embedded_s3/rclone.py)
gzip -6 "$1"/bin/rclone
