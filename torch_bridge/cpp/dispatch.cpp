// Any registered operator by name, through libtorch's boxed dispatcher.
#include "bridge.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>
#include <ATen/core/stack.h>

#include <optional>
#include <sstream>

using c10::IValue;
using c10::TypeKind;

extern "C" {

/// One argument or result. Which fields count depends on the tag; lists point at `length` elements.
struct hb_value {
  int32_t tag;
  int64_t integer;
  double real;
  const void* data;
  size_t length;
};

/// Receives results in order. What `data` points at lives for the call only, but tensors in it are Rust's to keep.
using hb_sink = void (*)(void* context, const hb_value* value);
}

namespace {

// The same numbers as `ffi::tag` in Rust.
enum Tag : int32_t {
  kNone = 0,
  kTensor = 1,
  kInt = 2,
  kDouble = 3,
  kBool = 4,
  kString = 5,
  kTensorList = 6, // elements are `at::Tensor*`
  kOptionalTensorList = 7, // as above, null for none
  kIntList = 8,
  kDoubleList = 9,
  kBoolList = 10, // elements are bytes
  kScalarType = 11,
  kDevice = 12,
  kOpaque = 13, // `IValue*`
};

const char* tag_name(int32_t tag) {
  static const char* const names[] = {
      "None", "a tensor", "an int", "a float", "a bool", "a string", "a list of tensors",
      "a list of optional tensors", "a list of ints", "a list of floats", "a list of bools", "a dtype", "a device",
      "an opaque value"};
  return tag >= 0 && tag <= kOpaque ? names[tag] : "a value of unknown kind";
}

template <class Element>
c10::ArrayRef<Element> elements(const hb_value& value) {
  return {static_cast<const Element*>(value.data), value.length};
}

const at::Tensor& as_tensor(const void* pointer) {
  return *static_cast<const at::Tensor*>(pointer);
}

/// The list that `value` stands for where the schema wants a list of `element`.
std::optional<IValue> list_of(const hb_value& value, const c10::Type& element) {
  const bool tensors = value.tag == kTensorList || value.tag == kOptionalTensorList;
  switch (element.kind()) {
    case TypeKind::TensorType: {
      if (value.tag != kTensorList) {
        return std::nullopt;
      }
      c10::List<at::Tensor> list;
      list.reserve(value.length);
      for (const auto* pointer : elements<const void*>(value)) {
        list.push_back(as_tensor(pointer));
      }
      return IValue(std::move(list));
    }
    case TypeKind::OptionalType: {
      const auto& inner = element.castRaw<c10::OptionalType>()->getElementType();
      if (!tensors || inner->kind() != TypeKind::TensorType) {
        return std::nullopt;
      }
      c10::List<std::optional<at::Tensor>> list;
      list.reserve(value.length);
      for (const auto* pointer : elements<const void*>(value)) {
        list.push_back(pointer ? std::optional<at::Tensor>(as_tensor(pointer)) : std::nullopt);
      }
      return IValue(std::move(list));
    }
    case TypeKind::IntType:
    case TypeKind::SymIntType:
      if (value.tag == kIntList) {
        return IValue(elements<int64_t>(value).vec());
      }
      return std::nullopt;
    case TypeKind::FloatType:
      if (value.tag == kDoubleList) {
        return IValue(elements<double>(value).vec());
      }
      if (value.tag == kIntList) {
        const auto ints = elements<int64_t>(value);
        return IValue(std::vector<double>(ints.begin(), ints.end()));
      }
      return std::nullopt;
    case TypeKind::BoolType: {
      if (value.tag != kBoolList) {
        return std::nullopt;
      }
      c10::List<bool> list;
      for (const auto byte : elements<uint8_t>(value)) {
        list.push_back(byte != 0);
      }
      return IValue(std::move(list));
    }
    case TypeKind::NumberType: {
      c10::List<c10::Scalar> list;
      if (value.tag == kDoubleList) {
        for (const auto number : elements<double>(value)) {
          list.push_back(c10::Scalar(number));
        }
      } else if (value.tag == kIntList) {
        for (const auto number : elements<int64_t>(value)) {
          list.push_back(c10::Scalar(number));
        }
      } else {
        return std::nullopt;
      }
      return IValue(std::move(list));
    }
    default:
      return std::nullopt;
  }
}

/// `value` as the schema's `type` wants it, or nothing if it cannot be that. Only lossless conversions are made.
std::optional<IValue> convert(const hb_value& value, const c10::Type& type) {
  if (value.tag == kOpaque) {
    const auto& held = *static_cast<const IValue*>(value.data);
    if (held.type()->isSubtypeOf(type)) {
      return held;
    }
    return std::nullopt;
  }
  switch (type.kind()) {
    case TypeKind::OptionalType:
      if (value.tag == kNone) {
        return IValue();
      }
      return convert(value, *type.castRaw<c10::OptionalType>()->getElementType());
    case TypeKind::NoneType:
      return value.tag == kNone ? std::optional<IValue>(IValue()) : std::nullopt;
    case TypeKind::TensorType:
      return value.tag == kTensor ? std::optional<IValue>(as_tensor(value.data)) : std::nullopt;
    case TypeKind::ListType:
      return list_of(value, *type.castRaw<c10::ListType>()->getElementType());
    case TypeKind::IntType: // dtypes are ints to the dispatcher
    case TypeKind::SymIntType:
      if (value.tag == kInt || value.tag == kScalarType) {
        return IValue(value.integer);
      }
      return std::nullopt;
    case TypeKind::FloatType:
      if (value.tag == kDouble) {
        return IValue(value.real);
      }
      if (value.tag == kInt) {
        return IValue(static_cast<double>(value.integer));
      }
      return std::nullopt;
    case TypeKind::NumberType:
      if (value.tag == kDouble) {
        return IValue(value.real);
      }
      if (value.tag == kInt) {
        return IValue(value.integer);
      }
      if (value.tag == kBool) {
        return IValue(value.integer != 0);
      }
      return std::nullopt;
    case TypeKind::BoolType:
      return value.tag == kBool ? std::optional<IValue>(value.integer != 0) : std::nullopt;
    case TypeKind::StringType:
      if (value.tag == kString) {
        return IValue(std::string(static_cast<const char*>(value.data), value.length));
      }
      return std::nullopt;
    case TypeKind::DeviceObjType:
      if (value.tag == kDevice) {
        return IValue(hymba::device_of(static_cast<int32_t>(value.integer)));
      }
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

[[noreturn]] void refuse(const c10::FunctionSchema& schema, const std::string& what) {
  std::ostringstream text;
  text << what << "; its schema is " << schema;
  throw std::invalid_argument(text.str());
}

/// Says which overloads there are, if it is only the overload that is wrong.
std::string unknown_operator(const std::string& name) {
  std::string overloads;
  for (const auto& known : c10::Dispatcher::singleton().getAllOpNames()) {
    if (known.name == name && c10::Dispatcher::singleton().findSchema(known).has_value()) {
      overloads += (overloads.empty() ? "`" : ", `") + known.overload_name + "`";
    }
  }
  return overloads.empty() ? "libtorch has no operator of this name"
                           : "libtorch has no operator of this overload; it has " + overloads;
}

torch::jit::Stack stack_of(const c10::FunctionSchema& schema, c10::ArrayRef<hb_value> values) {
  const auto& arguments = schema.arguments();
  if (values.size() > arguments.size()) {
    refuse(schema, c10::str("takes at most ", arguments.size(), " arguments, got ", values.size()));
  }
  torch::jit::Stack stack;
  stack.reserve(arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& argument = arguments[i];
    if (i >= values.size()) {
      if (!argument.default_value().has_value()) {
        refuse(schema, c10::str("argument ", i, " `", argument.name(), "` is missing and has no default"));
      }
      stack.push_back(*argument.default_value());
      continue;
    }
    auto converted = convert(values[i], *argument.type());
    if (!converted.has_value()) {
      refuse(
          schema,
          c10::str(
              "argument ", i, " `", argument.name(), "` must be ", argument.type()->str(), ", got ",
              tag_name(values[i].tag)));
    }
    stack.push_back(std::move(*converted));
  }
  return stack;
}

/// Hands one result to Rust. Nothing can throw between making a tensor for Rust and giving it away.
void deliver(IValue&& result, hb_sink sink, void* context) {
  hb_value value{kNone, 0, 0.0, nullptr, 0};
  if (result.isNone()) {
    sink(context, &value);
  } else if (result.isTensor()) {
    if (result.toTensor().defined()) {
      value.tag = kTensor;
      value.data = new at::Tensor(std::move(result).toTensor());
    }
    sink(context, &value);
  } else if (result.isInt()) {
    value.tag = kInt;
    value.integer = result.toInt();
    sink(context, &value);
  } else if (result.isDouble()) {
    value.tag = kDouble;
    value.real = result.toDouble();
    sink(context, &value);
  } else if (result.isBool()) {
    value.tag = kBool;
    value.integer = result.toBool() ? 1 : 0;
    sink(context, &value);
  } else if (result.isString()) {
    const auto& text = result.toStringRef();
    value.tag = kString;
    value.data = text.data();
    value.length = text.size();
    sink(context, &value);
  } else if (result.isTensorList()) {
    const auto list = result.toTensorVector();
    std::vector<const void*> pointers;
    pointers.reserve(list.size());
    for (const auto& tensor : list) {
      pointers.push_back(new at::Tensor(tensor));
    }
    value.tag = kTensorList;
    value.data = pointers.data();
    value.length = pointers.size();
    sink(context, &value);
  } else if (result.isIntList()) {
    const auto list = result.toIntVector();
    value.tag = kIntList;
    value.data = list.data();
    value.length = list.size();
    sink(context, &value);
  } else if (result.isDoubleList()) {
    const auto list = result.toDoubleVector();
    value.tag = kDoubleList;
    value.data = list.data();
    value.length = list.size();
    sink(context, &value);
  } else if (result.isBoolList()) {
    const auto list = result.toBoolList();
    std::vector<uint8_t> bytes(list.begin(), list.end());
    value.tag = kBoolList;
    value.data = bytes.data();
    value.length = bytes.size();
    sink(context, &value);
  } else {
    value.tag = kOpaque;
    value.data = new IValue(std::move(result));
    sink(context, &value);
  }
}

} // namespace

extern "C" {

/// Looks an operator up. The handle is never freed: Rust keeps one per name for the life of the process.
int hb_operator_find(const char* name, const char* overload, const c10::OperatorHandle** out) {
  return hymba::guarded([&] {
    const auto found = c10::Dispatcher::singleton().findSchema({name, overload});
    if (!found.has_value()) {
      throw std::invalid_argument(unknown_operator(name));
    }
    *out = new c10::OperatorHandle(*found);
  });
}

int hb_operator_schema(const c10::OperatorHandle* op, hb_sink sink, void* context) {
  return hymba::guarded([&] { deliver(IValue(c10::str(op->schema())), sink, context); });
}

int hb_operator_call(
    const c10::OperatorHandle* op,
    const hb_value* arguments,
    size_t count,
    hb_sink sink,
    void* context) {
  return hymba::guarded([&] {
    auto stack = stack_of(op->schema(), {arguments, count});
    op->callBoxed(stack);
    for (auto& result : stack) {
      deliver(std::move(result), sink, context);
    }
  });
}

void hb_opaque_free(IValue* value) {
  delete value;
}

IValue* hb_opaque_clone(const IValue* value) {
  return new IValue(*value);
}

int hb_opaque_describe(const IValue* value, hb_sink sink, void* context) {
  return hymba::guarded([&] { deliver(IValue(value->type()->str()), sink, context); });
}
}
