// Which kernel table launchers use: the best that this processor runs, unless a test asks
// otherwise.
#pragma once

#include <string>

#include "fastgen/kernels.h"

namespace fastgen {

const Kernels& kernels();
std::string isa();
void set_isa(std::string name);

}  // namespace fastgen
