// A device that pretends to be an accelerator (torch's PrivateUse1), for tests of where tensors are.
// Its memory is the host's and torch's CPU fallback computes every operation, but a call that mixes
// its tensors with tensors of the CPU is an error, as on a GPU.

#include <cstdlib>

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/histc.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Size = at::IntArrayRef;
template <typename T>
using Maybe = std::optional<T>;

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(bytes ? bytes : 1);
    return {data, data, &std::free, c10::Device(kDevice, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
HostMemory memory;
REGISTER_ALLOCATOR(kDevice, &memory);

// Backward passes ask for streams and events, which this device does not need.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kDevice> {
  c10::Device getDevice() const override { return {kDevice, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, {kDevice, 0});
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
const bool kHooked = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

bool is_here(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDevice; }

// The same memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

Tensor empty(Size size, Maybe<at::ScalarType> dtype, Maybe<at::Layout>, Maybe<at::Device>,
             Maybe<bool>, Maybe<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(Size size, Size stride, Maybe<at::ScalarType> dtype, Maybe<at::Layout>,
                     Maybe<at::Device>, Maybe<bool>) {
  const auto type = c10::dtype_or_default(dtype);
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, type);
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}
Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}
at::Scalar scalar(const Tensor& tensor) { return on_cpu(tensor).item(); }
// As on a GPU, integers can be counted.
Tensor histc(const Tensor& tensor, int64_t bins, const at::Scalar& low, const at::Scalar& high) {
  const auto counts = at::histc(on_cpu(tensor).to(at::kFloat), bins, low, high);
  return counts.to(tensor.options());
}

// As on a GPU, tensors without dimensions and the indices of an index expression may be on the CPU.
void compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  bool here = false, cpu = false;
  const auto look = [&](const Tensor& tensor) {
    here |= is_here(tensor);
    cpu |= tensor.defined() && tensor.is_cpu() && tensor.dim();
  };
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& tensor : value.toTensorVector()) look(tensor);
    if (value.isOptionalTensorList())
      for (const auto& index : value.toOptionalTensorVector()) here |= index && is_here(*index);
    if (value.isGenerator()) cpu |= value.toGenerator().defined();
  }
  TORCH_CHECK(!here || !cpu, "expected all tensors on one device, got some on the CPU in ",
              op.schema().name());
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &scalar);
  m.impl("histc", &histc);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("unfold", &at::native::unfold);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage", static_cast<Tensor& (*)(Tensor&, at::Storage)>(&at::native::set_));
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
}
