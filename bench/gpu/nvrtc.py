"""Compiles the project's CUDA sources with NVRTC and launches them: what the checks and timings beside this file share.

It wants NVRTC (a wheel that comes with torch) and, to launch, the CUDA driver; the arguments of a kernel are torch
tensors (None for a null pointer), Python ints (64-bit) and ctypes values.
"""
import ctypes
import glob
import hashlib
import os
import sys

ROOT = os.environ.get("KERNELS") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../kernels/src")


def library():
    for site in sys.path:
        for path in sorted(glob.glob(os.path.join(site, "nvidia/*/lib/libnvrtc.so.*"))):
            if "alt" not in path:
                # NVRTC opens this one by its bare name.
                for builtins in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so*")):
                    ctypes.CDLL(builtins)
                return ctypes.CDLL(path)
    raise SystemExit("no NVRTC in sys.path")


def headers():
    paths = glob.glob(os.path.join(ROOT, "**/*.cuh"), recursive=True)
    return {os.path.basename(path): open(path).read() for path in paths}


COMPILED = {}


def compile(path, arch, defines=None, options=(), specific=False):
    """The cubin of ROOT/path for sm_`arch`, and the compiler's log; from memory if it was compiled before."""
    key = (path, arch, str(defines), tuple(options), specific)
    if key not in COMPILED:
        COMPILED[key] = kept(path, arch, defines, options, specific)
    return COMPILED[key]


def kept(path, arch, defines, options, specific):
    """From the folder CUBINS, if there is one: compiled on another machine, say."""
    folder = os.environ.get("CUBINS")
    if not folder:
        return compile_now(path, arch, defines, options, specific)
    text = open(os.path.join(ROOT, path)).read() + str(sorted(headers().items())) + str((arch, defines, options, specific))
    name = os.path.join(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
    if not os.path.exists(name):
        os.makedirs(folder, exist_ok=True)
        cubin, _ = compile_now(path, arch, defines, options, specific)
        with open(name, "wb") as file:
            file.write(cubin)
    return open(name, "rb").read(), ""


def compile_now(path, arch, defines, options, specific):
    nvrtc = library()
    text = open(os.path.join(ROOT, path)).read().encode()
    included = headers()
    program = ctypes.c_void_p()
    names = (ctypes.c_char_p * len(included))(*[name.encode() for name in included])
    bodies = (ctypes.c_char_p * len(included))(*[body.encode() for body in included.values()])
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, path.encode(), len(included), bodies, names) == 0
    flags = [f"--gpu-architecture=sm_{arch}{'a' if specific else ''}", "--std=c++17", "--generate-line-info", *options]
    flags += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    code = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*[f.encode() for f in flags]))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    log = log.value.decode()
    if code:
        raise RuntimeError(f"{path} {defines} sm_{arch}:\n{log}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw, log


class Module:
    """A loaded cubin; `module.name(grid, block, shared, arguments...)` launches on torch's current stream."""

    def __init__(self, path, defines=None, arch=None, **more):
        import torch
        self.torch = torch
        torch.cuda.current_stream()  # makes the context
        if arch is None:
            major, minor = torch.cuda.get_device_capability()
            arch = 10 * major + minor
        self.cubin, self.log = compile(path, arch, defines, **more)
        self.cuda = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device="cuda")
        self.module = ctypes.c_void_p()
        self.ok(self.cuda.cuModuleLoadData(ctypes.byref(self.module), self.cubin))
        self.functions, self.constants = {}, {}

    def ok(self, code):
        if code:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"CUDA error {code}: {text.value}")

    def constant(self, name):
        """An int in constant memory."""
        if name in self.constants:
            return self.constants[name]
        address, size, value = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_int()
        self.ok(self.cuda.cuModuleGetGlobal_v2(ctypes.byref(address), ctypes.byref(size), self.module, name.encode()))
        self.ok(self.cuda.cuMemcpyDtoH_v2(ctypes.byref(value), address, ctypes.c_size_t(4)))
        self.constants[name] = value.value
        return value.value

    def function(self, name):
        if name not in self.functions:
            function = ctypes.c_void_p()
            self.ok(self.cuda.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode()))
            self.functions[name] = function
        return self.functions[name]

    def launch(self, name, grid, block, shared, *arguments):
        function = self.function(name)
        if shared > 48 * 1024:
            self.ok(self.cuda.cuFuncSetAttribute(function, 8, shared))
        values = []
        for x in arguments:
            if x is None:
                values.append(ctypes.c_void_p(0))
            elif isinstance(x, int):
                values.append(ctypes.c_int64(x))
            elif isinstance(x, self.torch.Tensor):
                values.append(ctypes.c_void_p(x.data_ptr()))
            else:
                values.append(x)
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values])
        grid = tuple(grid) + (1,) * (3 - len(grid))
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        self.ok(self.cuda.cuLaunchKernel(function, *grid, block, 1, 1, shared, stream, pointers, None))
