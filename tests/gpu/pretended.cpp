// Accelerators that are not there, for a CPU build of torch: two GPUs by CUDA, one by MPS, one by XPU.
//
// A tensor of theirs is a plain torch tensor whose storage says "cuda:0" and lies in the host's memory. Every operation
// of which the CPU has a kernel is given to each kind by one function, `run`: it refuses what real kernels refuse, takes
// the same memory as tensors of the CPU, runs the CPU's kernel, and hands the results back as the device's. All above
// the kernels is torch's own: autograd with the device's threads, autocast, copies, generators, fused optimisers.
//
// A wait of the host for the device is told to Python (`pretended_on_wait`), which knows the line that asked for it.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/detail/XPUHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/library.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::IValue;

constexpr std::array<DeviceType, 3> KINDS = {DeviceType::CUDA, DeviceType::MPS, DeviceType::XPU};
constexpr std::array<DispatchKey, 3> KEYS = {DispatchKey::CUDA, DispatchKey::MPS, DispatchKey::XPU};
constexpr DeviceIndex MOST = 2;
constexpr size_t STAGED = 64 * 1024;  // bytes that CUDA copies from pageable memory without a wait

bool is_pretended(DeviceType type) { return std::find(KINDS.begin(), KINDS.end(), type) != KINDS.end(); }
DeviceIndex count_of(DeviceType type) { return type == DeviceType::CUDA ? MOST : 1; }
// torch knows one kind of accelerator in a process.
std::atomic<DeviceType> kind_there = DeviceType::CUDA;
thread_local std::map<DeviceType, DeviceIndex> current;

void (*on_wait)(const char*) = nullptr;
void wait(const std::string& why) {
  if (on_wait) on_wait(why.c_str());
}

// ---- memory: what is held on each device, and no more than its limit ----

struct Memory {
  std::mutex lock;
  int64_t held = 0, peak = 0, limit = 0;
};
Memory& memory_of(Device device) {
  static std::array<std::array<Memory, MOST>, 3> all;
  auto kind = std::find(KINDS.begin(), KINDS.end(), device.type()) - KINDS.begin();
  return all[kind][std::max<DeviceIndex>(device.index(), 0)];
}

void hold(Device device, int64_t bytes) {
  auto& memory = memory_of(device);
  std::lock_guard<std::mutex> guard(memory.lock);
  TORCH_CHECK_WITH(OutOfMemoryError, !memory.limit || memory.held + bytes <= memory.limit,
                   "CUDA out of memory. Tried to allocate ", bytes, " bytes of ", memory.limit, " on ", device);
  memory.held += bytes;
  memory.peak = std::max(memory.peak, memory.held);
}

// What the storage of a pretended tensor owns: memory of the CPU.
struct Owner {
  c10::DataPtr data;
  c10::Storage storage;  // or a storage that a kernel of the CPU has made
  Device device;
  int64_t bytes;
};
void let_go(void* context) {
  auto* owner = static_cast<Owner*>(context);
  auto& memory = memory_of(owner->device);
  {
    std::lock_guard<std::mutex> guard(memory.lock);
    memory.held -= owner->bytes;
  }
  delete owner;
}

pid_t began = 0;
void check_process() {
  TORCH_CHECK(!began || began == getpid(), "Cannot re-initialize CUDA in forked subprocess. To use CUDA with ",
              "multiprocessing, you must use the 'spawn' start method");
  began = getpid();
}

struct DeviceAllocator final : c10::Allocator {
  explicit DeviceAllocator(DeviceType type) : type(type) {}
  c10::DataPtr allocate(size_t bytes) override {
    check_process();
    Device device(type, current[type]);
    hold(device, bytes);
    auto data = c10::GetCPUAllocator()->allocate(bytes);
    auto* memory = data.get();
    return {memory, new Owner{std::move(data), {}, device, static_cast<int64_t>(bytes)}, let_go, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  DeviceType type;
};
c10::Allocator* allocator_of(DeviceType type) {
  static DeviceAllocator cuda(DeviceType::CUDA), mps(DeviceType::MPS), xpu(DeviceType::XPU);
  return type == DeviceType::CUDA ? &cuda : type == DeviceType::MPS ? &mps : &xpu;
}

std::mutex pinned_lock;
std::set<std::pair<const char*, size_t>> pinned;
struct PinnedAllocator final : c10::Allocator {
  struct Held {
    c10::DataPtr data;
    size_t bytes;
  };
  static void unpin(void* context) {
    auto* held = static_cast<Held*>(context);
    {
      std::lock_guard<std::mutex> guard(pinned_lock);
      pinned.erase({static_cast<const char*>(held->data.get()), held->bytes});
    }
    delete held;
  }
  c10::DataPtr allocate(size_t bytes) override {
    auto data = c10::GetCPUAllocator()->allocate(bytes);
    auto* memory = data.get();
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.insert({static_cast<const char*>(memory), bytes});
    return {memory, new Held{std::move(data), bytes}, unpin, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
PinnedAllocator pinned_allocator;
bool is_pinned(const void* data) {
  auto* at = static_cast<const char*>(data);
  std::lock_guard<std::mutex> guard(pinned_lock);
  auto after = pinned.upper_bound({at, SIZE_MAX});
  if (after == pinned.begin()) return false;
  auto [start, bytes] = *std::prev(after);
  return at >= start && at < start + bytes;
}

// ---- random numbers: a generator of the device's, which is one of the CPU within ----

struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(Device device, at::Generator inner = at::detail::createCPUGenerator())
      : GeneratorImpl(device, c10::DispatchKeySet(KEYS[std::find(KINDS.begin(), KINDS.end(), device.type()) - KINDS.begin()])),
        inner(std::move(inner)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(device_, inner.clone()); }
  at::Generator inner;
};
const at::Generator& default_generator(Device device) {
  static std::mutex lock;
  static std::map<std::pair<DeviceType, DeviceIndex>, at::Generator> all;
  std::lock_guard<std::mutex> guard(lock);
  DeviceIndex index = device.index() < 0 ? current[device.type()] : device.index();
  auto& found = all[{device.type(), index}];
  if (!found.defined()) found = at::make_generator<DeviceGenerator>(Device(device.type(), index));
  return found;
}
thread_local bool give_default = false;
at::Generator new_generator(DeviceType type, DeviceIndex index) {
  Device device(type, index < 0 ? current[type] : index);
  if (give_default) return default_generator(device);
  return at::make_generator<DeviceGenerator>(device);
}

// ---- one operation ----

const std::set<std::string> READS = {  // for whose answer the host waits
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "_unique", "bincount", "histc", "is_set_to",
};
const std::set<std::string> CROSSING = {"copy_", "_foreach_copy_"};
const std::set<std::string> NUMBERS = {  // take a number of the CPU though they are not pointwise by torch's tags
    "where", "masked_fill", "masked_fill_", "fill_", "lerp", "clamp", "index_fill_", "floor_divide",
};
bool begins(const std::string& name, const char* with) { return name.rfind(with, 0) == 0; }
bool is_indexing(const std::string& name) { return name == "index" || name == "_index_put_impl_"; }

// Runs one operation, and remembers which of the CPU's memory is which of the device's.
struct Call {
  std::string name;
  bool pointwise, draws;
  c10::optional<Device> device{};
  std::vector<std::pair<Tensor, Tensor>> taken{};  // the device's tensor, and the CPU's of the same memory
  std::vector<Tensor> given{};                     // all tensors among the arguments, in order

  void see(const Tensor& tensor) {
    if (!tensor.defined()) return;
    given.push_back(tensor);
    if (is_pretended(tensor.device().type()) && !device) device = tensor.device();
  }

  static bool is_mask(const Tensor& tensor) { return tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte; }
  // Of (self, indices ...) and (self, indices ..., values).
  bool is_index(size_t place) const {
    return is_indexing(name) && place > 0 && place < given.size() - (name == "index" ? 0 : 1);
  }
  // One mask and one number are filled in, which asks nothing.
  bool is_filled() const { return name != "index" && given.size() == 3 && is_mask(given[1]) && given[2].numel() == 1; }

  void refuse() const {
    if (CROSSING.count(name)) return;
    for (size_t place = 0; place < given.size(); ++place) {
      const auto& tensor = given[place];
      if (tensor.device() == *device) continue;
      bool host = tensor.device().is_cpu();
      if (host && is_index(place) && given[0].device() == *device) {
        wait("index by a tensor of the host");
        continue;
      }
      if (host && is_indexing(name) && tensor.numel() == 1 && tensor.dim() == 0 && place) {
        if (!is_filled()) wait("copy to the device");
        continue;
      }
      bool number = host && tensor.dim() == 0 && (pointwise || NUMBERS.count(name) || begins(name, "_foreach") || begins(name, "_fused"));
      bool written = place == 0 && name.back() == '_';
      if (number && !written) continue;
      if (is_indexing(name) && given[0].device().is_cpu())
        TORCH_CHECK(false, "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", *device, " and ",
                  tensor.device(), "! (", name, ", argument ", place, " of sizes ", tensor.sizes(), ")");
    }
  }

  void count() const {
    if (READS.count(name)) wait(name);
    if (is_indexing(name)) {
      bool masked = false;
      for (size_t place = 1; place < given.size(); ++place) masked |= is_index(place) && is_mask(given[place]);
      if (masked && !is_filled()) wait(name + " by mask");
    }
  }

  Tensor inside(const Tensor& tensor) {
    if (!tensor.defined() || !is_pretended(tensor.device().type())) return tensor;
    for (auto& [there, here] : taken)
      if (there.is_same(tensor)) return here;
    auto storage = tensor.storage();
    auto* owner = new c10::Storage(storage);
    c10::DataPtr data(storage.mutable_data(), owner, [](void* held) { delete static_cast<c10::Storage*>(held); }, Device(DeviceType::CPU));
    c10::Storage same(c10::Storage::use_byte_size_t(), storage.sym_nbytes(), std::move(data), c10::GetCPUAllocator(), true);
    auto here = at::detail::make_tensor<c10::TensorImpl>(std::move(same), c10::DispatchKeySet(DispatchKey::CPU), tensor.dtype());
    here.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.is_conj()) here._set_conj(true);
    if (tensor.is_neg()) here._set_neg(true);
    taken.emplace_back(tensor, here);
    return here;
  }

  // A tensor of the device that has the memory of one of the CPU.
  Tensor outside(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
    c10::optional<c10::Storage> storage;
    for (auto& [there, here] : taken) {
      if (here.is_same(tensor)) return there;
      if (here.storage().is_alias_of(tensor.storage())) storage = there.storage();
    }
    // An argument that was given as one of the CPU's: the device's results never share the host's memory.
    for (auto& argument : given)
      if (argument.is_same(tensor)) return tensor;
    auto type = device->type();
    TORCH_CHECK_TYPE(type != DeviceType::MPS || (tensor.scalar_type() != at::kDouble && tensor.scalar_type() != at::kComplexDouble),
                     "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 instead.");
    if (!storage) {
      check_process();
      auto bytes = tensor.storage().nbytes();
      hold(*device, bytes);
      auto* memory = tensor.storage().mutable_data();
      c10::DataPtr data(memory, new Owner{{}, tensor.storage(), *device, static_cast<int64_t>(bytes)}, let_go, *device);
      storage = c10::Storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), allocator_of(type), true);
    }
    auto key = KEYS[std::find(KINDS.begin(), KINDS.end(), type) - KINDS.begin()];
    auto there = at::detail::make_tensor<c10::TensorImpl>(std::move(*storage), c10::DispatchKeySet(key), tensor.dtype());
    there.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.is_conj()) there._set_conj(true);
    if (tensor.is_neg()) there._set_neg(true);
    return there;
  }

  // What a kernel wrote into may have been given another size.
  void resized() const {
    for (auto& [there, here] : taken) {
      bool moved = there.storage().data() != here.storage().data();
      if (!moved && there.sizes() == here.sizes() && there.strides() == here.strides()) continue;
      if (moved) {
        auto bytes = here.storage().nbytes();
        hold(*device, bytes);
        auto* memory = here.storage().mutable_data();
        there.storage().set_data_ptr_noswap({memory, new Owner{{}, here.storage(), *device, static_cast<int64_t>(bytes)}, let_go, *device});
        there.storage().set_nbytes(bytes);
      }
      there.unsafeGetTensorImpl()->set_sizes_and_strides(here.sizes(), here.strides(), here.storage_offset());
    }
  }
};

template <class F>
IValue mapped(const IValue& value, const F& of) {
  if (value.isTensor()) return of(value.toTensor());
  if (value.isTensorList()) {
    std::vector<Tensor> out;
    for (const Tensor& tensor : value.toTensorVector()) out.push_back(of(tensor));
    return out;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> out;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorList())
      out.push_back(tensor ? std::optional<Tensor>(of(*tensor)) : std::nullopt);
    return out;
  }
  return value;
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  std::string name = schema.name().substr(schema.name().find("::") + 2);
  Call call{name, op.hasTag(at::Tag::pointwise), op.hasTag(at::Tag::nondeterministic_seeded)};
  auto arguments = torch::jit::last(*stack, schema.arguments().size());
  c10::optional<Device> asked;
  for (const IValue& value : arguments) {
    mapped(value, [&](const Tensor& tensor) { return call.see(tensor), tensor; });
    if (value.isDevice()) asked = value.toDevice();
  }
  if (asked && is_pretended(asked->type())) {
    if (!asked->has_index()) asked = Device(asked->type(), current[asked->type()]);
    TORCH_CHECK(asked->index() < count_of(asked->type()), "CUDA error: invalid device ordinal");
    call.device = asked;
  }
  TORCH_INTERNAL_ASSERT(call.device, name, " of no device");
  check_process();
  call.refuse();
  call.count();
  if (name == "copy_") {
    const auto &to = call.given[0], &from = call.given[1];
    bool waits = !arguments.back().toBool();
    if (to.device() != from.device() && to.numel()) {
      bool pageable = from.device().is_cpu() && from.nbytes() > STAGED && !is_pinned(from.storage().data());
      if (from.device().is_cpu() && waits) wait("copy to the device");
      else if (pageable) wait("copy to the device from pageable memory");
      if (to.device().is_cpu()) wait(waits ? "copy to the host" : "copy to the host that nothing waits for");
    }
  }

  c10::optional<at::Generator> device_generator;
  std::vector<IValue> inner;
  for (size_t place = 0; place < schema.arguments().size(); ++place) {
    const IValue& value = arguments[place];
    bool generates = schema.arguments()[place].name() == "generator";
    if (value.isDevice()) {
      inner.emplace_back(Device(DeviceType::CPU));
    } else if (generates) {
      if (!value.isNone()) {
        auto of = value.toGenerator();
        TORCH_CHECK(of.device().type() == call.device->type(), "Expected a '", *call.device,
                    "' device type for generator but found '", of.device(), "'");
        device_generator = of;
      } else {
        device_generator = default_generator(*call.device);
      }
      inner.emplace_back(static_cast<DeviceGenerator*>(device_generator->unsafeGetGeneratorImpl())->inner);
    } else if (schema.arguments()[place].name() == "pin_memory") {
      inner.emplace_back();
    } else {
      inner.push_back(mapped(value, [&](const Tensor& tensor) { return call.inside(tensor); }));
    }
  }
  torch::jit::drop(*stack, schema.arguments().size());
  {
    at::AutoDispatchBelowADInplaceOrView below;
    // What draws and takes no generator draws from the CPU's own, which is lent the state of the device's.
    auto cpu = at::detail::getDefaultCPUGenerator();
    Tensor found;
    auto* own = static_cast<DeviceGenerator*>(default_generator(*call.device).unsafeGetGeneratorImpl());
    bool lent = call.draws && !device_generator;
    if (lent) {
      found = cpu.get_state();
      cpu.set_state(own->inner.get_state());
    }
    op.callBoxed(&inner);
    if (lent) {
      own->inner.set_state(cpu.get_state());
      cpu.set_state(found);
    }
  }
  if (schema.is_mutable()) call.resized();
  for (const IValue& value : inner) {
    bool host = name == "copy_";
    stack->push_back(host ? IValue(call.given[0]) : mapped(value, [&](const Tensor& tensor) { return call.outside(tensor); }));
  }
}

// The device's memory as the host's, for what exchanges it between processes.
Tensor host(const Tensor& tensor) {
  Call call{"host", false, false};
  return call.inside(tensor);
}

// ---- what torch asks of a device besides operations ----

template <DeviceType T>
struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return T; }
  Device exchangeDevice(Device device) const override {
    Device found(T, current[T]);
    current[T] = device.index();
    return found;
  }
  Device getDevice() const override { return {T, current[T]}; }
  void setDevice(Device device) const override { current[T] = device.index(); }
  void uncheckedSetDevice(Device device) const noexcept override { current[T] = device.index(); }
  c10::Stream getStream(Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getNewStream(Device device, int) const override { return getStream(device); }
  c10::Stream getDefaultStream(Device device) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  DeviceIndex deviceCount() const noexcept override { return count_of(T); }
  void record(void** event, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override { *event = &current; }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { wait("synchronize"); }
  void synchronizeEvent(void*) const override { wait("synchronize"); }
  void synchronizeDevice(const DeviceIndex) const override { wait("synchronize"); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

}  // namespace

// The same answers for each kind, under the names of its interface.
#define ANSWERS(TYPE)                                                                                       \
  void init() const override {}                                                                             \
  bool isBuilt() const override { return kind_there == TYPE; }                                                   \
  bool isAvailable() const override { return kind_there == TYPE; }                                               \
  bool hasPrimaryContext(DeviceIndex) const override { return true; }                                       \
  DeviceIndex deviceCount() const override { return count_of(TYPE); }                                       \
  DeviceIndex getCurrentDevice() const override { return current[TYPE]; }                                   \
  void setCurrentDevice(DeviceIndex index) const override { current[TYPE] = index; }                        \
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return std::exchange(current[TYPE], index); } \
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }       \
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }                             \
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }                   \
  Device getDeviceFromPtr(void*) const override { return {TYPE, current[TYPE]}; }                           \
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override { return default_generator({TYPE, index}); } \
  at::Generator getNewGenerator(DeviceIndex index) const override { return new_generator(TYPE, index); }

namespace at {

struct PretendedCUDA final : CUDAHooksInterface {
  explicit PretendedCUDA(CUDAHooksArgs) {}
  ANSWERS(DeviceType::CUDA)
  DeviceIndex current_device() const override { return current[DeviceType::CUDA]; }
  int getNumGPUs() const override { return MOST; }
  void deviceSynchronize(DeviceIndex) const override { wait("synchronize"); }
};
struct PretendedMPS final : MPSHooksInterface {
  ANSWERS(DeviceType::MPS)
  void deviceSynchronize() const override { wait("synchronize"); }
};
struct PretendedXPU final : XPUHooksInterface {
  ANSWERS(DeviceType::XPU)
  DeviceIndex getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override { wait("synchronize"); }
};

C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", PretendedCUDA)
C10_REGISTER_TYPED_CLASS(MPSHooksRegistry, "MPSHooks", PretendedMPS)
C10_REGISTER_TYPED_CLASS(XPUHooksRegistry, "XPUHooks", PretendedXPU)

}  // namespace at

namespace c10d {

// DistributedDataParallel asks for one, and what it measures is logged alone.
struct PretendedTimer final : Timer {
  explicit PretendedTimer(Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, PretendedTimer)

}  // namespace c10d

TORCH_LIBRARY(pretended, library) {
  library.def("host(Tensor x) -> Tensor", host);
}

namespace {

const Guard<DeviceType::CUDA> cuda_guard;
const Guard<DeviceType::MPS> mps_guard;
const Guard<DeviceType::XPU> xpu_guard;
std::vector<std::unique_ptr<torch::Library>> libraries;

// Composed operations that CUDA runs as one; without a kernel of its own each would take a path of the CPU's.
const std::set<std::string> AS_ONE = {"aten::convolution", "aten::convolution_backward", "aten::copy_"};

struct Begin {
  Begin() {
    const std::array<const c10::impl::DeviceGuardImplInterface*, 3> guards = {&cuda_guard, &mps_guard, &xpu_guard};
    auto names = c10::Dispatcher::singleton().getAllOpNames();
    for (size_t kind = 0; kind < KINDS.size(); ++kind) {
      c10::impl::device_guard_impl_registry[static_cast<size_t>(KINDS[kind])].store(guards[kind]);
      c10::SetAllocator(KINDS[kind], allocator_of(KINDS[kind]));
      auto aten = std::make_unique<torch::Library>(torch::Library::IMPL, "aten", KEYS[kind], __FILE__, __LINE__);
      aten->impl("resize_", at::native::resize_);
      aten->impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
      aten->impl("set_.source_Storage", at::native::set_);
      aten->impl("set_.source_Tensor", at::native::set_tensor_);
      aten->impl("set_", at::native::set_cpu_);
      const std::set<std::string> own = {"aten::resize_", "aten::set_"};
      for (const auto& name : names) {
        auto op = c10::Dispatcher::singleton().findOp(name);
        if (!op || name.name.rfind("aten::", 0) != 0 || own.count(name.name) || op->hasKernelForDispatchKey(KEYS[kind])) continue;
        if (!AS_ONE.count(name.name) && !op->hasKernelForDispatchKey(DispatchKey::CPU)) continue;
        auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
        aten->impl(full.substr(6).c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
      }
      libraries.push_back(std::move(aten));
    }
  }
} begin_;

Device device_of(int kind, int index) { return {KINDS[kind], static_cast<DeviceIndex>(index)}; }

}  // namespace

extern "C" {
void pretended_on_wait(void (*told)(const char*)) { on_wait = told; }
void pretended_give_default(bool give) { give_default = give; }
void pretended_be(int kind) { kind_there = KINDS[kind]; }
void pretended_set(int kind, int index) { current[KINDS[kind]] = static_cast<DeviceIndex>(index); }
int pretended_current(int kind) { return current[KINDS[kind]]; }
int64_t pretended_held(int kind, int index) { return memory_of(device_of(kind, index)).held; }
int64_t pretended_peak(int kind, int index) { return memory_of(device_of(kind, index)).peak; }
void pretended_limit(int kind, int index, int64_t bytes) { memory_of(device_of(kind, index)).limit = bytes; }
void pretended_forget_peak(int kind, int index) {
  auto& memory = memory_of(device_of(kind, index));
  memory.peak = memory.held;
}
bool pretended_is_forked() { return began && began != getpid(); }
}
