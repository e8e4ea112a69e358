//! The files libtorch is made of: exact versions, sizes and SHA-256, and what is kept of each.
//!
//! The versions of the NVIDIA wheels are those the metadata of the torch wheel pins for Linux. The package index is
//! whatever pip is set up for: no address is written here.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The one libtorch that tch 0.24 binds.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// How much of libtorch is set up; a later one contains the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Parts {
    /// What training on a CPU needs.
    Cpu,
    /// Also NVRTC, which compiles every GPU kernel, without a GPU.
    Nvrtc,
    /// Also everything an NVIDIA GPU needs.
    Cuda,
}

/// One pinned wheel.
#[derive(Debug, Clone, Copy)]
pub struct Wheel {
    /// The package's name, as pip wants it.
    pub name: &'static str,
    /// The exact version.
    pub version: &'static str,
    /// The file's exact name: its tags tell pip which platform to choose, whatever Python runs.
    pub file: &'static str,
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: &'static str,
    /// What is unpacked: paths inside the wheel, a folder when they end in `/`.
    pub keep: &'static [Keep],
}

/// Files of a wheel that are unpacked for some parts.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// The smallest set-up that has them.
    pub parts: Parts,
    /// Paths inside the wheel; one that ends in `/` is a folder.
    pub paths: &'static [&'static str],
    /// Their unpacked size, in bytes.
    pub bytes: u64,
}

impl Wheel {
    /// The platform tags at the end of the file's name, one for each `--platform` of pip.
    pub fn platforms(&self) -> impl Iterator<Item = &'static str> {
        self.file.trim_end_matches(".whl").rsplit('-').next().unwrap_or("any").split('.')
    }

    /// What is unpacked for `parts`; empty when this wheel is not needed.
    pub fn paths(&self, parts: Parts) -> Vec<&'static str> {
        self.kept(parts).flat_map(|keep| keep.paths.iter().copied()).collect()
    }

    /// Bytes on disk after unpacking for `parts`.
    pub fn unpacked_bytes(&self, parts: Parts) -> u64 {
        self.kept(parts).map(|keep| keep.bytes).sum()
    }

    fn kept(&self, parts: Parts) -> impl Iterator<Item = &'static Keep> {
        self.keep.iter().filter(move |keep| keep.parts <= parts)
    }
}

/// The wheels that `parts` needs.
pub fn wheels(parts: Parts) -> impl Iterator<Item = &'static Wheel> {
    WHEELS.iter().filter(move |wheel| wheel.kept(parts).next().is_some())
}

/// The wheels with what `parts` has and `have` lacks.
pub fn wheels_between(have: Parts, parts: Parts) -> impl Iterator<Item = &'static Wheel> {
    let more = move |keep: &Keep| have < keep.parts && keep.parts <= parts;
    WHEELS.iter().filter(move |wheel| wheel.keep.iter().any(more))
}

/// A file without which nothing runs; enough to recognise a libtorch that someone else unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Essential {
    /// Path below `.libtorch`.
    pub path: &'static str,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: &'static str,
}

/// The libraries that `libtorch_cpu.so` needs, itself among them, as the pinned wheels hold them.
pub const ESSENTIALS: &[Essential] = &[
    Essential {
        path: "torch/lib/libc10.so",
        bytes: 1_498_969,
        sha256: "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640",
    },
    Essential {
        path: "torch/lib/libtorch_cpu.so",
        bytes: 451_209_129,
        sha256: "99ea9120891528198d73d477714adf14ec662dec467aca8a3940796ccd452e91",
    },
    Essential {
        path: "torch/lib/libgomp.so.1",
        bytes: 254_009,
        sha256: "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890",
    },
    Essential {
        path: "nvidia/cu13/lib/libcudart.so.13",
        bytes: 704_288,
        sha256: "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0",
    },
    Essential {
        path: "nvidia/cu13/lib/libcupti.so.13",
        bytes: 4_152_208,
        sha256: "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e",
    },
];

/// Number and total size in bytes of the headers in the pinned torch wheel.
pub const HEADERS: (u64, u64) = (9_410, 38_754_372);

/// Every wheel that some set-up needs.
pub const WHEELS: &[Wheel] = &[
    Wheel {
        name: "torch",
        version: "2.11.0",
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        bytes: 530_604_548,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        keep: &[
            Keep {
                parts: Parts::Cpu,
                paths: &[
                    "torch/lib/libc10.so",
                    "torch/lib/libtorch_cpu.so",
                    "torch/lib/libgomp.so.1",
                    "torch/lib/libtorch_global_deps.so",
                    "torch/include/",
                    "torch/version.py",
                ],
                bytes: 491_733_813,
            },
            Keep {
                parts: Parts::Cuda,
                paths: &[
                    "torch/lib/libc10_cuda.so",
                    "torch/lib/libcaffe2_nvrtc.so",
                    "torch/lib/libtorch.so",
                    "torch/lib/libtorch_cuda.so",
                    "torch/lib/libtorch_cuda_linalg.so",
                    "torch/lib/libtorch_nvshmem.so",
                ],
                bytes: 514_678_382,
            },
        ],
    },
    Wheel {
        name: "nvidia-cuda-runtime",
        version: "13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 2_243_632,
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        keep: &[
            Keep { parts: Parts::Cpu, paths: &["nvidia/cu13/lib/libcudart.so.13"], bytes: 704_288 },
            Keep { parts: Parts::Cuda, paths: &["nvidia/cu13/include/"], bytes: 4_091_322 },
        ],
    },
    Wheel {
        name: "nvidia-cuda-cupti",
        version: "13.0.85",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        bytes: 10_715_597,
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        keep: &[
            Keep { parts: Parts::Cpu, paths: &["nvidia/cu13/lib/libcupti.so.13"], bytes: 4_152_208 },
            Keep {
                parts: Parts::Cuda,
                paths: &[
                    "nvidia/cu13/lib/libcheckpoint.so",
                    "nvidia/cu13/lib/libnvperf_host.so",
                    "nvidia/cu13/lib/libnvperf_target.so",
                    "nvidia/cu13/lib/libpcsamplingutil.so",
                    "nvidia/cu13/include/",
                ],
                bytes: 41_016_070,
            },
        ],
    },
    Wheel {
        name: "nvidia-cuda-nvrtc",
        version: "13.0.88",
        file: "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        bytes: 90_215_200,
        sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        // Not the `.alt` libraries, a second NVRTC of the same size that nothing here opens.
        keep: &[Keep {
            parts: Parts::Nvrtc,
            paths: &["nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc-builtins.so.13.0"],
            bytes: 113_718_680,
        }],
    },
    Wheel {
        name: "nvidia-cublas",
        version: "13.1.0.3",
        file: "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
        bytes: 423_133_236,
        sha256: "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 597_070_121 }],
    },
    Wheel {
        name: "nvidia-cudnn-cu13",
        version: "9.19.0.56",
        file: "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_x86_64.whl",
        bytes: 366_066_321,
        sha256: "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 493_786_362 }],
    },
    Wheel {
        name: "nvidia-cufft",
        version: "12.0.0.61",
        file: "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 214_085_489,
        sha256: "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 287_584_117 }],
    },
    Wheel {
        name: "nvidia-cufile",
        version: "1.15.1.6",
        file: "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 1_223_672,
        sha256: "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 3_259_694 }],
    },
    Wheel {
        name: "nvidia-curand",
        version: "10.4.0.35",
        file: "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
        bytes: 59_544_258,
        sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 134_803_400 }],
    },
    Wheel {
        name: "nvidia-cusolver",
        version: "12.0.4.66",
        file: "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
        bytes: 200_941_980,
        sha256: "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 245_365_543 }],
    },
    Wheel {
        name: "nvidia-cusparse",
        version: "12.6.3.3",
        file: "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 145_942_937,
        sha256: "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 162_864_662 }],
    },
    Wheel {
        name: "nvidia-cusparselt-cu13",
        version: "0.8.0",
        file: "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_x86_64.whl",
        bytes: 169_884_119,
        sha256: "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 233_649_250 }],
    },
    Wheel {
        name: "nvidia-nccl-cu13",
        version: "2.28.9",
        file: "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl",
        bytes: 196_493_177,
        sha256: "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 218_285_842 }],
    },
    Wheel {
        name: "nvidia-nvjitlink",
        version: "13.0.88",
        file: "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        bytes: 40_713_933,
        sha256: "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 98_823_949 }],
    },
    Wheel {
        name: "nvidia-nvshmem-cu13",
        version: "3.4.5",
        file: "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 60_412_546,
        sha256: "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 77_773_520 }],
    },
    Wheel {
        name: "nvidia-nvtx",
        version: "13.0.85",
        file: "nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
        bytes: 148_047,
        sha256: "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
        keep: &[Keep { parts: Parts::Cuda, paths: &["nvidia/"], bytes: 571_747 }],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_complete() {
        for wheel in WHEELS {
            assert_eq!(wheel.sha256.len(), 64, "{}", wheel.file);
            let written = wheel.name.replace('-', "_");
            assert!(wheel.file.starts_with(&format!("{written}-{}-", wheel.version)), "{}", wheel.file);
            assert!(wheel.bytes > 0 && !wheel.keep.is_empty());
        }
    }

    #[test]
    fn the_essentials_are_in_the_smallest_set() {
        let cpu: Vec<_> = wheels(Parts::Cpu).flat_map(|wheel| wheel.paths(Parts::Cpu)).collect();
        for essential in ESSENTIALS {
            assert!(cpu.contains(&essential.path), "{}", essential.path);
        }
        assert_eq!(wheels(Parts::Cpu).count(), 3);
        assert_eq!(wheels(Parts::Cuda).count(), WHEELS.len());
    }

    #[test]
    fn kernels_are_compiled_by_one_wheel_more() {
        let names = |have, parts| wheels_between(have, parts).map(|wheel| wheel.name).collect::<Vec<_>>();
        assert_eq!(names(Parts::Cpu, Parts::Nvrtc), ["nvidia-cuda-nvrtc"]);
        assert_eq!(names(Parts::Nvrtc, Parts::Nvrtc), [""; 0]);
        assert!(names(Parts::Nvrtc, Parts::Cuda).contains(&"torch"));
    }

    #[test]
    fn platforms_come_from_the_file_name() {
        let runtime = &WHEELS[1];
        let tags: Vec<_> = runtime.platforms().collect();
        assert_eq!(tags, ["manylinux2014_x86_64", "manylinux_2_17_x86_64"]);
    }
}
