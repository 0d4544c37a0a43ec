#!/bin/sh
# slim.sh ENVIRONMENT: take out of a virtual environment what no transform and no gateway loads.
#
# Compiled Python stays: the root of a container may be read-only, and importing pandas without it takes seconds.
set -eu
cd "$1"/lib/python3*/site-packages

# tests that packages carry with them, and what only compilers read
find . -type d \( -name tests -o -name test \) \( -path './pandas/*' -o -path './numpy/*' -o -path './pyarrow/*' \
    -o -path './tornado/*' -o -path './zmq/*' -o -path './psutil/*' \) -prune -exec rm -rf {} +
rm -rf pyarrow/include pyarrow/src numpy/_core/include numpy/_core/lib numpy/random/lib
find . -type f \( -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.a' -o -name '*.pyi' \) -delete

# a wheel cannot hold links, so a library under three names is in it three times
for file in pyarrow/libarrow_python*.so.*.*; do
    for name in "${file%.*.*}" "${file%.*.*.*}"; do
        if [ "$name" != "$file" ] && cmp -s "$file" "$name"; then ln -sf "$(basename "$file")" "$name"; fi
    done
done

# tables of local symbols, which only debuggers read. Libraries in *.libs were relocated when the wheel was made: strip
# breaks those, so it gets the ones that are as their linker left them
strip --strip-unneeded _polars_runtime*/*.so pyarrow/*.so pyarrow/*.so.*

# two thirds of its 86 MB are saved, and only who asks for the embedded S3 pays for it, with 0.3 s (gateway/storage/rclone.py)
gzip -6 "$1"/bin/rclone
