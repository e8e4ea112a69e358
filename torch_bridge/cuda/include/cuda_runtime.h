// libtorch includes it for nothing that is needed here.
#pragma once
#include "cuda_runtime_api.h"
