#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# ccache.sh COMPILER ARG...: through ccache, which goes by the dependencies that a compiler of C writes down:
# without preprocessing twice, a cold build takes three quarters of the time. Assembly has to be
# preprocessed: .incbin, of which compilers say nothing, is found that way only.

case " $* " in
*.S\ *)	;;
*)	export CCACHE_DEPEND=1 ;;
esac
exec ccache "$@"
